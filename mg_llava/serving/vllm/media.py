"""Pictures and videos by URL, whose fragment may name boxes and frames, in vLLM's registry of media connectors."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaIO

from mg_llava.serving.vllm.boxed import BoxedPicture, split_boxes
from mg_llava.serving.vllm.names import MODE
from mg_llava.serving.vllm.videos import BoxedVideo, split_said


class VideoBytes(MediaIO[bytes]):
    """A video's file as it is: its frames are chosen and decoded as in training."""

    def load_bytes(self, data: bytes) -> bytes:
        """The bytes."""
        return data

    def load_base64(self, media_type: str, data: str) -> bytes:
        """The bytes that the text stands for."""
        return base64.b64decode(data, validate=True)

    def load_file(self, filepath: Path) -> bytes:
        """The bytes of a file."""
        return filepath.read_bytes()


@MEDIA_CONNECTOR_REGISTRY.register(MODE)
class BoxedMediaConnector(MediaConnector):
    """vLLM's own connector, which fetches by vLLM's rules, and reads the fragment off a URL first."""

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

    def fetch_video(self, video_url: str, **_: Any) -> BoxedVideo:
        """Returns the video's file, with what the URL says of frames and boxes."""
        address, said = split_said(video_url)
        content = self.load_from_url(address, VideoBytes(), fetch_timeout=envs.VLLM_VIDEO_FETCH_TIMEOUT)
        return replace(said, source=content)

    async def fetch_video_async(self, video_url: str, **_: Any) -> BoxedVideo:
        """As `fetch_video`."""
        address, said = split_said(video_url)
        content = await self.load_from_url_async(address, VideoBytes(), fetch_timeout=envs.VLLM_VIDEO_FETCH_TIMEOUT)
        return replace(said, source=content)
