"""MG-LLaVA: CLIP at 336 px, ConvNeXt at 768 px (or other encoders), Conv-Gate fusion, object tokens."""

from mg_llava.model import ConvGateFusion, HighResEncoder, LowResEncoder, MGLLaVA, ObjectEncoder
from xtuner.model import MLPProjector, build_llm

visual_encoder_aux_path = "checkpoints/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
image_size_aux = 768

model = dict(
    type=MGLLaVA,
    llm=dict(
        type=build_llm,
        name_or_path="${llm_name_or_path}",
        attn_implementation="${attn_implementation}",
        quantization="${llm_quantization}",
    ),
    low_res_encoder=dict(
        type=LowResEncoder, name_or_path="${visual_encoder_name_or_path}", image_size="${visual_encoder_image_size}"
    ),
    high_res_encoder=dict(type=HighResEncoder, path="${visual_encoder_aux_path}", image_size="${image_size_aux}"),
    fusion=dict(type=ConvGateFusion),
    projector=dict(type=MLPProjector),
    object_encoder=dict(type=ObjectEncoder),
    frame_pooling="${frame_pooling}",
    trainable="${trainable}",
    llm_lora="${llm_lora}",
    visual_encoder_lora="${visual_encoder_lora}",
    pack="${pack}",
    activation_checkpointing="${activation_checkpointing}",
    compile="${compile_model}",
    fused_loss="${fused_loss}",
    pretrained_pth="${pretrained_pth}",
)
