"""Picture encoders, a family per module; each says its own channels, grid, strides and pixel statistics.

``base`` holds the two interfaces. All families are imported here, so that `LowResEncoder` and `HighResEncoder` find
the class of a folder by its config.
"""

from mg_llava.model.encoders.aimv2 import Aimv2Encoder
from mg_llava.model.encoders.backbones import BackboneEncoder, Dinov3ConvNeXt, SwinEncoder
from mg_llava.model.encoders.base import HighResEncoder, LowResEncoder, PictureEncoder
from mg_llava.model.encoders.clip import ClipEncoder, MetaClip2Encoder
from mg_llava.model.encoders.dino import Dinov2Encoder, Dinov2RegistersEncoder, Dinov3Encoder
from mg_llava.model.encoders.open_clip import OpenClipConvNeXt, read_trunk_config
from mg_llava.model.encoders.siglip import Siglip2Encoder, SiglipEncoder
from mg_llava.model.encoders.timm_maps import TimmFeatureEncoder
from mg_llava.model.encoders.timm_vit import TimmViTEncoder

ENCODER_CLASSES = tuple(
    sorted({kind.__name__ for base in (LowResEncoder, HighResEncoder) for kind in base.by_family.values()})
)
"""Names of the classes of all families."""

__all__ = [
    "ENCODER_CLASSES",
    "Aimv2Encoder",
    "BackboneEncoder",
    "ClipEncoder",
    "Dinov2Encoder",
    "Dinov2RegistersEncoder",
    "Dinov3ConvNeXt",
    "Dinov3Encoder",
    "HighResEncoder",
    "LowResEncoder",
    "MetaClip2Encoder",
    "OpenClipConvNeXt",
    "PictureEncoder",
    "Siglip2Encoder",
    "SiglipEncoder",
    "SwinEncoder",
    "TimmFeatureEncoder",
    "TimmViTEncoder",
    "read_trunk_config",
]
