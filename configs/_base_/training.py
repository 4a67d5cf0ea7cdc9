"""Everything around the model, assembled from the settings: data, optimizer, schedule, run, evaluation."""

from torch.optim import AdamW

from mg_llava.boxes import BoxSelection
from mg_llava.data import MGLLaVADataset
from mg_llava.pictures import FramePooling, ImageProcessor
from mg_llava.videos import FrameSampling
from xtuner.data.batches import ShuffledBatchSampler
from xtuner.data.text import build_tokenizer
from xtuner.engine import RuntimeSettings
from xtuner.engine.steps import WarmupCosine, build_optimizer

tokenizer = dict(type=build_tokenizer, name_or_path="${llm_name_or_path}", source="${tokenizer_source}")
image_processor = dict(
    type=ImageProcessor,
    name_or_path="${visual_encoder_name_or_path}",
    image_size="${image_size_aux}",
    low_res_size="${visual_encoder_image_size}",
    pad_to_square="${pad_image_to_square}",
    frame_pooling="${frame_pooling}",
)
box_selection = dict(
    type=BoxSelection,
    iou_threshold="${box_iou_threshold}",
    limit_num="${box_limit_num}",
    limit_mode="${box_limit_mode}",
)
frame_sampling = dict(type=FrameSampling)  # of videos: num_frames (8) or fps, max_frames, start, end, repeat
frame_pooling = dict(type=FramePooling)  # of videos: side=2 joins 2 x 2 image tokens of a frame to their mean
train_dataset = dict(
    type=MGLLaVADataset,
    data_path="${data_path}",
    data_columns="${data_columns}",
    image_folder="${image_folder}",
    box_json_path="${box_json_path}",
    offline_processed_text_folder="${offline_processed_text_folder}",
    tokenizer="${tokenizer}",
    image_processor="${image_processor}",
    prompt_template="${prompt_template}",
    special_tokens_in_text="${special_tokens_in_text}",
    system_prompt="${system_prompt}",
    max_length="${max_length}",
    llm_name_or_path="${llm_name_or_path}",
    on_bad_sample="${on_bad_sample}",
    strict_paths="${strict_paths}",
    allow_odd_boxes="${allow_odd_boxes}",
    boxes="${box_selection}",
    frame_sampling="${frame_sampling}",
    frame_cache="${frame_cache}",
)
train_dataloader = dict(
    batch_size="${batch_size}",
    num_workers="${dataloader_num_workers}",
    sampler=dict(type=ShuffledBatchSampler, max_tokens_per_batch="${max_tokens_per_batch}"),
)
# fmt: off
optimizer_class = dict(type=AdamW)
optimizer = dict(
    type=build_optimizer, optimizer_class="${optimizer_class}", lr="${lr}", betas="${betas}",
    weight_decay="${weight_decay}", max_norm="${max_norm}", accumulative_counts="${accumulative_counts}",
    precision="${precision}",
)
schedule = dict(type=WarmupCosine, warmup_ratio="${warmup_ratio}", max_epochs="${max_epochs}", max_iters="${max_iters}")
runtime = dict(
    type=RuntimeSettings, seed="${seed}", loss_mean="${loss_mean}", save_steps="${save_steps}",
    save_total_limit="${save_total_limit}", async_save="${async_save}", keep_best="${keep_best}",
    val_interval="${val_interval}", val_benchmarks="${val_benchmarks}", val_limit="${val_limit}",
    logging_interval="${logging_interval}", visualizers="${visualizers}", bad_sample_limit="${bad_sample_limit}",
    max_skipped_steps="${max_skipped_steps}",
)
# fmt: on
