"""Settings that all stages and models share: plain values that you refer to as '${name}' and override anywhere."""

# model: the class of an encoder follows from its folder (docs/encoders.md)
visual_encoder_name_or_path = "openai/clip-vit-large-patch14-336"
visual_encoder_image_size = None  # pixels, where the low-resolution picture is not of the size that its config says
pretrained_pth = None
attn_implementation = "auto"
activation_checkpointing = True  # recomputes all layers (or a share of them, 0 to 1) in the backward pass
llm_lora = None  # dict(type=LoraConfig, r=64, ...): adapters instead of the language model's weights
visual_encoder_lora = None  # the same for the low-resolution encoder
llm_quantization = None  # "4bit", "8bit": with llm_lora (QLoRA)
compile_model = False  # torch.compile of encoders and layers
fused_loss = False  # head and loss in one kernel; needs liger-kernel
pack = False  # samples of a micro-batch in one row, without padding: worthwhile with flash attention
max_tokens_per_batch = None  # with pack: maximum tokens per micro-batch, instead of batch_size samples
loss_mean = "step"

# data: max_length counts text tokens (576 of 2048 positions are kept for the picture); object tokens are extra
max_length = 2048 - 576
system_prompt = None  # of conversations without one; None: the template's ("auto" may have one)
tokenizer_source = "auto"  # where a folder's files disagree: "tokenizer.json" (as "auto") or "tokenizer.model"
special_tokens_in_text = "split"  # "</s>" in a text is text; "keep": it becomes the token, "refuse": it is an error
data_columns = None  # of Parquet, Arrow, WebDataset: dict(conversations="chat", image="jpg") where names differ
pad_image_to_square = True
frame_cache = None  # folder of frames that `xtuner preprocess video` kept: videos are not decoded in training
offline_processed_text_folder = None
box_iou_threshold = 0.2
box_limit_num = 100
box_limit_mode = "per_image"
dataloader_num_workers = 4
strict_paths = False  # refuses pictures outside image_folder: absolute paths, "..", symbolic links
allow_odd_boxes = False  # takes box files in which most boxes cannot be pixels
on_bad_sample = "skip"
bad_sample_limit = 0.01

# optimisation
accumulative_counts = 1
max_epochs = 1
max_iters = None
betas = (0.9, 0.999)
weight_decay = 0.0  # like lr a number, or by part and pattern: dict(default=0.1, projector=0.0)
max_norm = 1.0
warmup_ratio = 0.03
precision = "auto"
deepspeed = "deepspeed_zero2"  # what the scripts pass to `xtuner train --deepspeed`

# run
save_total_limit = 2
async_save = False  # writes checkpoints while training continues, from a copy in host memory
keep_best = None  # "val/<benchmark>": keeps its best checkpoint
max_skipped_steps = 20  # steps in a row without a finite gradient that end the run
logging_interval = 10
seed = 42
visualizers = ("tensorboard",)
val_interval = None  # optimizer steps between evaluations during training
val_benchmarks = None  # names of benchmarks; None: every one whose files are present
val_limit = None  # questions per benchmark
