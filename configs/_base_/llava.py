"""The low-resolution baseline (LLaVA-1.5): CLIP and projector. Import it after a stage: it replaces the model."""

from mg_llava.model import LowResEncoder, MGLLaVA
from xtuner.model import MLPProjector, build_llm

visual_encoder_aux_path = None
image_size_aux = 336
box_json_path = None
benchmark_box_folder = None

model = dict(
    type=MGLLaVA,
    llm=dict(
        type=build_llm,
        name_or_path="${llm_name_or_path}",
        attn_implementation="${attn_implementation}",
        quantization="${llm_quantization}",
    ),
    low_res_encoder=dict(type=LowResEncoder, name_or_path="${visual_encoder_name_or_path}"),
    projector=dict(type=MLPProjector),
    trainable="${trainable}",
    llm_lora="${llm_lora}",
    visual_encoder_lora="${visual_encoder_lora}",
    pack="${pack}",
    activation_checkpointing="${activation_checkpointing}",
    compile="${compile_model}",
    fused_loss="${fused_loss}",
    pretrained_pth="${pretrained_pth}",
)
