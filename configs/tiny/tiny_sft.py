"""Stage 2 in the tiny world, from the checkpoint of stage 1 that `pretrained_pth` names."""

from mmengine.config import read_base

with read_base():
    from .._base_.sft import *
    from .._base_.tiny_world import *

data_path = "work_dirs/tiny_world/data/sft.json"
batch_size = 16
lr = 1e-3
max_epochs = 3
save_steps = 200
