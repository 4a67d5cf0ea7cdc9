"""Stage 1 in the tiny world: minutes on two CPU cores."""

from mmengine.config import read_base

with read_base():
    from .._base_.pretrain import *
    from .._base_.tiny_world import *

data_path = "work_dirs/tiny_world/data/pretrain.json"
lr = 2e-3
max_epochs = 2
save_steps = 100
