"""The low-resolution baseline (LLaVA-1.5): CLIP and projector. Import it after a stage: it replaces the model."""

from mmengine.config import read_base

with read_base():
    from .mg_llava import *

visual_encoder_aux_path = None
image_size_aux = 336
box_json_path = ""
benchmark_box_folder = None

model.pop("high_res_encoder")
model.pop("fusion")
model.pop("object_encoder")
