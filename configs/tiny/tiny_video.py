"""The tiny world's clips, from the checkpoint of stage 2 that `pretrained_pth` names."""

from mmengine.config import read_base

with read_base():
    from .tiny_sft import *

data_path = "work_dirs/tiny_world/data/videos.json"
box_json_path = "work_dirs/tiny_world/data/videos_boxes.json"
frame_sampling.num_frames = 4
benchmarks[0].update(name="tiny_videos", data_file="work_dirs/tiny_world/data/videos_test.json")
benchmarks += [dict(benchmarks[0], name="tiny_videos_shuffled", shuffle_frames=True)]
