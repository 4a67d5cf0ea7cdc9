"""Stage 1: captions train fusion and both projectors; encoders and LLM are frozen."""

from mmengine.config import read_base

with read_base():
    from .benchmarks import *
    from .mg_llava import *
    from .settings import *
    from .training import *

data_path = "data/pretrain/llava558k_allava708k.json"
image_folder = "data/images"
box_json_path = "data/pretrain/boxes.json"

trainable = ("fusion", "projector", "object_encoder")
batch_size = 32
lr = 1e-3
save_steps = 500
