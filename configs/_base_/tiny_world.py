"""The tiny world of tools/tiny_world: data, parts and sizes of all tiny configs. Import it after a stage."""

from mg_llava.evaluation import ShortAnswer

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

# the paths below, like those above, are relative to the folder where you run the commands
benchmark_folder = ""
benchmark_box_folder = None
evaluation_batch_size = 64
# fmt: off
benchmarks = [
    dict(type=ShortAnswer, name="tiny_world", data_root="${benchmark_folder}", box_folder="${benchmark_box_folder}",
         data_file="work_dirs/tiny_world/data/test.json", image_folder="${image_folder}",
         box_json_path="${box_json_path}", frame_sampling="${frame_sampling}")
]
