"""The paper: the whole model and its parts, in the order of the forward pass.

``mg_llava`` assembles the parts; ``vision`` is its side of pictures, of which ``encoders``, ``fusion`` and ``objects``
are one step each; ``splice`` puts what comes out into the text; ``batch`` makes what the forward pass reads; ``flops``
counts its operations; ``checkpoint_names`` maps published names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "mg_llava": ["MGLLaVA"],
        "encoders": [
            "Aimv2Encoder",
            "ClipEncoder",
            "Dinov2Encoder",
            "Dinov2RegistersEncoder",
            "Dinov3ConvNeXt",
            "Dinov3Encoder",
            "HighResEncoder",
            "LowResEncoder",
            "MetaClip2Encoder",
            "OpenClipConvNeXt",
            "Siglip2Encoder",
            "SiglipEncoder",
            "SwinEncoder",
            "TimmFeatureEncoder",
            "TimmViTEncoder",
        ],
        "fusion": ["ConcatFusion", "ConvConcatFusion", "ConvGateFusion", "GatedConcatFusion"],
        "objects": ["ObjectEncoder", "axis_weights", "pool_boxes"],
        "splice": ["SplicePlan", "plan_splice"],
        "batch": ["BatchPreprocessor"],
        "vision": ["VisionSide"],
        "checkpoint_names": ["own_names", "to_our_names", "to_published_names"],
    },
)
