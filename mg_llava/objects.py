"""Object features, where they were before they moved to `mg_llava.model.objects`."""

from mg_llava.model.objects import ObjectEncoder, axis_weights, pool_boxes

__all__ = ["ObjectEncoder", "axis_weights", "pool_boxes"]
