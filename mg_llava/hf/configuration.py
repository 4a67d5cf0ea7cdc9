"""config.json of an exported folder: what each part is, so that the folder alone builds the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from xtuner.errors import XTunerError
from xtuner.registry import current_types

MODEL_TYPE = "mg_llava"
"""``model_type`` of the folder's config.json; also the package whose module `hf` reads the folder."""
FORMAT_VERSION = 2
_FORMER_VISION = "clip_vision_model"
"""What a vision_config without a model_type is: the first versions knew CLIP alone."""
_TRUSTED_PACKAGES = ("mg_llava", "xtuner")


class MGLLaVAConfig(PretrainedConfig):
    """What builds the model without any other file.

    Args:
        text_config: the language model's own config (or its values with ``model_type``).
        vision_config: the low-resolution encoder's own config: transformers', or the content of timm's config.json.
        high_res_config: content of the config of the high-resolution encoder; None without one.
        parts: the config node of the model, without the paths of its parts.
        part_dtypes: number format of each part as it was saved, by name.
        pixels: arguments of `PixelNormalizer`: ``mean`` and ``std``, of both encoders where they differ.
        image_token_id: id that the processor puts at each place of an image or object token.
        num_image_tokens: V, image tokens of a picture.
        stop_token_ids: ids that end an answer.
        format_version: of the folder.
        source: where the weights come from, for people.
        kwargs: of ``PretrainedConfig``.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        text_config: Mapping[str, Any] | PretrainedConfig | None = None,
        vision_config: Mapping[str, Any] | PretrainedConfig | None = None,
        high_res_config: Mapping[str, Any] | None = None,
        parts: Mapping[str, Any] | None = None,
        part_dtypes: Mapping[str, str] | None = None,
        pixels: Mapping[str, Any] | None = None,
        image_token_id: int = 0,
        num_image_tokens: int = 0,
        stop_token_ids: list[int] | None = None,
        format_version: int = FORMAT_VERSION,
        source: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config: Any = _sub_config(text_config)
        self.vision_config = _sub_config(vision_config, _FORMER_VISION)
        self.high_res_config = None if high_res_config is None else dict(high_res_config)
        self.parts = dict(parts or {})
        self.part_dtypes = dict(part_dtypes or {})
        self.pixels = dict(pixels or {})
        self.image_token_id = image_token_id
        self.num_image_tokens = num_image_tokens
        self.stop_token_ids = list(stop_token_ids or [])
        self.format_version = format_version
        self.source = dict(source or {})
        super().__init__(**kwargs)

    def get_text_config(self, *_: Any, **__: Any) -> PretrainedConfig:
        """Returns the language model's config, from which transformers takes sizes for generation."""
        return self if self.text_config is None else self.text_config

    def check(self, where: str) -> None:
        """Checks what a folder from elsewhere may say; names of before a move become today's.

        Raises:
            XTunerError: written by another version, or a part is of a class that is not ours: a folder must not decide
                which code runs.
        """
        if self.format_version != FORMAT_VERSION:
            raise XTunerError(
                f"'{where}' is of format version {self.format_version}, expected {FORMAT_VERSION}: convert the "
                "checkpoint again with this version of the program."
            )
        if not self.parts or self.text_config is None or self.vision_config is None:
            raise XTunerError(
                f"'{where}' does not describe its parts (text_config, vision_config, parts): expected a config.json "
                "as `xtuner convert pth_to_hf` writes it."
            )
        check_types(self.parts)
        self.parts = current_types(self.parts, where)


def check_types(node: Any) -> None:
    """Refuses classes of other packages in a model's node.

    Raises:
        XTunerError: a ``type`` that is not of `mg_llava` or `xtuner`.
    """
    if isinstance(node, Mapping):
        kind = node.get("type", MODEL_TYPE)
        if not isinstance(kind, str) or kind.split(".")[0] not in _TRUSTED_PACKAGES:
            raise XTunerError(
                f"a part of the model is of type {kind!r}: exported folders may only name classes of "
                f"{' and '.join(_TRUSTED_PACKAGES)}, so that loading one runs no other code."
            )
        for value in node.values():
            check_types(value)


def _sub_config(
    value: Mapping[str, Any] | PretrainedConfig | None, otherwise: str | None = None
) -> PretrainedConfig | dict[str, Any] | None:
    if value is None or isinstance(value, PretrainedConfig):
        return value
    values = dict(value)
    # timm's configs name an architecture
    if "architecture" in values:
        return values
    kind = values.pop("model_type", otherwise)
    if kind is None:
        raise XTunerError(
            f"a part's config has no model_type among {', '.join(map(str, values)) or 'nothing'}: expected a "
            "config.json as `xtuner convert pth_to_hf` writes it."
        )
    return AutoConfig.for_model(kind, **values)
