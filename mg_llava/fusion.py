"""The ways of fusing, where they were before they moved to `mg_llava.model.fusion`."""

from mg_llava.model.fusion import ConcatFusion, ConvConcatFusion, ConvGateFusion, GatedConcatFusion

__all__ = ["ConcatFusion", "ConvConcatFusion", "ConvGateFusion", "GatedConcatFusion"]
