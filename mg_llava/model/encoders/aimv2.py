"""AIMv2 as low-resolution encoder."""

from __future__ import annotations

from mg_llava.model.encoders.vision_transformer import TransformersEncoder
from xtuner.errors import XTunerError


class Aimv2Encoder(TransformersEncoder):
    """AIMv2's vision transformer; no class token."""

    families = ("aimv2_vision_model", "aimv2")
    model_class = "Aimv2VisionModel"
    overrides = {"use_head": False}
    key_mapping = {r"^vision_model\.": ""}

    def check_size(self) -> None:
        """Refuses another size where positions are learned.

        Raises:
            XTunerError: the picture has another size than the folder's config says.
        """
        if self.is_resized and not self.config.get("is_native"):
            raise XTunerError(
                f"'{self.name_or_path}' has learned positions for pictures of {self.config.get('image_size')} px, not "
                f"{self.image_size}: leave visual_encoder_image_size out, or take a 'native' AIMv2."
            )
