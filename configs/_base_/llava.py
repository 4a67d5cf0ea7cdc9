"""The low-resolution baseline (LLaVA-1.5), in stage 1: CLIP and projector. Import it after a stage."""

from mmengine.config import read_base

with read_base():
    from .mg_llava import *

visual_encoder_aux_path = None
image_size_aux = 336
box_json_path = ""
benchmark_box_folder = None
trainable = ("projector",)

model.pop("high_res_encoder")
model.pop("fusion")
model.pop("object_encoder")
