"""The tiny world of tools/tiny_world: data, parts and sizes that all tiny configs share. Read after a stage."""

llm_name_or_path = "work_dirs/tiny_world/parts/llm"
visual_encoder_name_or_path = "work_dirs/tiny_world/parts/clip"
visual_encoder_aux_path = "work_dirs/tiny_world/parts/convnext"
image_size_aux = 192
prompt_template = "vicuna"

image_folder = "work_dirs/tiny_world/data"
box_json_path = "work_dirs/tiny_world/data/boxes.json"

activation_checkpointing = False
dataloader_num_workers = 0
deepspeed = None
logging_interval = 20
