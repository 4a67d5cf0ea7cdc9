"""Pictures by URL, whose fragment may name their boxes, in vLLM's registry of media connectors."""

from __future__ import annotations

from typing import Any

from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from mg_llava.serving.vllm.boxed import BoxedPicture, split_boxes
from mg_llava.serving.vllm.names import MODE


@MEDIA_CONNECTOR_REGISTRY.register(MODE)
class BoxedMediaConnector(MediaConnector):
    """vLLM's own connector, which fetches by vLLM's rules, and reads ``#boxes=`` off a picture's URL first."""

    def fetch_image(self, image_url: str, **options: Any) -> Any:
        """Returns the picture, with its boxes where the URL names them."""
        address, found = split_boxes(image_url)
        picture = super().fetch_image(address, **options)
        return picture if found is None else BoxedPicture(picture, found)

    async def fetch_image_async(self, image_url: str, **options: Any) -> Any:
        """As `fetch_image`."""
        address, found = split_boxes(image_url)
        picture = await super().fetch_image_async(address, **options)
        return picture if found is None else BoxedPicture(picture, found)
