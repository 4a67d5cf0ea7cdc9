"""Videos, after stage 2: 8 frames of 144 tokens. Import it after that stage; `pretrained_pth` names its checkpoint."""

from mg_llava.pictures import FramePooling

data_path = "data/video/videochatgpt_tune.json"
image_folder = "data/video"
box_json_path = "data/video/boxes.json"
frame_pooling = dict(type=FramePooling, side=2)
batch_size = 2
accumulative_counts = 8
