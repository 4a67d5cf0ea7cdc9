"""Stage 2: instructions train the LLM too, from the pretrain checkpoint that `pretrained_pth` names."""

from mmengine.config import read_base

from xtuner.data.batches import LengthGroupedBatchSampler

with read_base():
    from .benchmarks import *
    from .mg_llava import *
    from .settings import *
    from .training import *

data_path = "data/sft/llava665k_allava692k_docs25k.json"
image_folder = "data/images"
box_json_path = "data/sft/boxes.json"

trainable = ("fusion", "projector", "object_encoder", "llm")
batch_size = 16
lr = 2e-5
save_steps = 1000
train_dataloader.sampler.type = LengthGroupedBatchSampler
