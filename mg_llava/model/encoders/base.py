"""What every picture encoder says of itself; `LowResEncoder` and `HighResEncoder` find a folder's family themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig

from mg_llava.pictures.encoder_config import HIGH, LOW, EncoderConfig, read_encoder_config, token_grid
from mg_llava.pictures.frames import FrameSize, frame_size, sides
from mg_llava.pictures.statistics import PixelStatistics, read_pixel_statistics
from xtuner.errors import XTunerError

ConfigSource = str | PretrainedConfig | Mapping[str, Any]
"""Folder or hub name; or, where no weights are wanted, the config that would stand in it."""


class PictureEncoder(nn.Module):
    """What encoders of both resolutions share: one class per family, found by the family that a folder's config names.

    Attributes:
        families: names of the class's families, as `EncoderConfig.family` gives them.
        config: what the folder's config says.
    """

    families: ClassVar[tuple[str, ...]] = ()
    by_family: ClassVar[dict[str, type[PictureEncoder]]]
    role: ClassVar[str]
    config: EncoderConfig
    image_size: FrameSize

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Enters the class under its families."""
        super().__init_subclass__(**kwargs)
        for family in cls.families:
            cls.by_family[family] = cls

    @classmethod
    def class_for(cls, config: EncoderConfig) -> type[Any]:
        """Returns the class that reads a folder.

        Raises:
            XTunerError: none does; names the classes that there are, or the other resolution's class.
        """
        found = cls.by_family.get(config.family)
        if found is None:
            other = LowResEncoder if cls.role == HIGH else HighResEncoder
            elsewhere = other.by_family.get(config.family)
            hint = (
                f"it is for the {other.role} encoder ({elsewhere.__name__})"
                if elsewhere
                else f"there are {', '.join(sorted({kind.__name__ for kind in cls.by_family.values()}))}"
            )
            raise XTunerError(f"{config.described}, which no {cls.role} encoder reads: {hint}.")
        return found

    @classmethod
    def read_config(cls, source: ConfigSource) -> EncoderConfig:
        """Reads the config of a folder of this class's families.

        Raises:
            XTunerError: the folder is of another family: the message names the class for it.
        """
        config = read_encoder_config(source, cls.role)
        if config.family not in cls.families:
            right = cls.class_for(config).__name__
            raise XTunerError(
                f"{config.described}, which {cls.__name__} does not read: use {right}, from mg_llava.model as well."
            )
        return config

    def exported_config(self) -> Any:
        """Returns what builds the encoder's shape again: transformers' config, or content of a config file."""
        return self.config.values

    def blank_picture(self) -> torch.Tensor:
        """Returns a picture of zeros, (1, 3, S, S)."""
        return torch.zeros(1, 3, *sides(self.image_size))

    @property
    def statistics(self) -> PixelStatistics:
        """Mean and deviation of the pixels that the encoder was trained on; see `read_pixel_statistics`."""
        return read_pixel_statistics(self.config.source)


class LowResEncoder(PictureEncoder):
    """A vision transformer: (I, 3, s, s) normalised pixels → (I, V, C) tokens, without class and register tokens.

    Called by this name it becomes an encoder of the family that the folder's config.json names. Each family has a
    class of its own, which a config may name instead.

    Args:
        name_or_path: folder or hub name; under `meta_init` its config will do.
        select_layer: which hidden state is read, counted from the end: −1 the last layer's output, before any final
            norm, −2 the one before it. Layers above it are not built into the model.
        image_size: s in pixels, or (height, width), where it is not the config's own; position embeddings are
            interpolated.

    Attributes:
        name_or_path: as given.
        channels: C.
        grid: (h, w) with V = h·w.
        num_tokens: V.
        image_size: s, in pixels; (height, width) where it is no square.
        num_prefix_tokens: class and register tokens before the picture's own, which are dropped.

    Raises:
        XTunerError: the folder cannot be read, is of another family, or has fewer layers than `select_layer` asks for.
    """

    by_family: ClassVar[dict[str, type[PictureEncoder]]] = {}
    role = LOW

    channels: int
    num_prefix_tokens: int = 0

    def __new__(
        cls, name_or_path: ConfigSource = "", select_layer: int = -2, image_size: FrameSize | None = None
    ) -> LowResEncoder:
        """Makes an object of the folder's family where `LowResEncoder` itself is called."""
        if cls is LowResEncoder:
            return super().__new__(cls.class_for(read_encoder_config(name_or_path, cls.role)))
        return super().__new__(cls)

    def __init__(self, name_or_path: ConfigSource, select_layer: int = -2, image_size: FrameSize | None = None) -> None:
        super().__init__()
        self.config = self.read_config(name_or_path)
        self.name_or_path = self.config.source
        self.image_size, self.grid = token_grid(self.config, image_size)
        self.is_resized = self.image_size != token_grid(self.config)[0]
        self.num_tokens = self.grid[0] * self.grid[1]

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The layers that are built, first to last."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(I, 3, s, s) → (I, V, C), tokens row by row."""
        raise NotImplementedError


class HighResEncoder(PictureEncoder):
    """A network of stages: (I, 3, S, S) normalised pixels → one map per stage, finest first.

    Called by this name it becomes an encoder of the family that the folder's config names, as `LowResEncoder` does.

    Args:
        path: folder (or, for transformers' and timm's, hub name); under `meta_init` the content of its config will do.
        image_size: S, side of the pictures in pixels, or (height, width).
        channels_last: keep maps with the channels innermost in memory, as ConvNeXt's normalisations and pointwise
            layers want them; the numbers stay.
        drop_path_rate: share of blocks that training skips at random, the last ones most often; None = as the folder
            says (open_clip's ``timm_drop_path``). A frozen encoder skips none.

    Attributes:
        channels: C_i of each stage map.
        strides: pixels per cell of each stage map.
        image_size: S.

    Raises:
        XTunerError: the folder or its weights are absent, incomplete, of another shape or family, or S is no multiple
            of the strides.
    """

    by_family: ClassVar[dict[str, type[PictureEncoder]]] = {}
    role = HIGH

    channels: list[int]
    strides: list[int]

    def __new__(
        cls,
        path: ConfigSource = "",
        image_size: FrameSize = 768,
        channels_last: bool = True,
        drop_path_rate: float | None = None,
    ) -> HighResEncoder:
        """Makes an object of the folder's family where `HighResEncoder` itself is called."""
        if cls is HighResEncoder:
            return super().__new__(cls.class_for(read_encoder_config(path, cls.role)))
        return super().__new__(cls)

    def __init__(
        self,
        path: ConfigSource,
        image_size: FrameSize = 768,
        channels_last: bool = True,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.config = self.read_config(path)
        self.image_size = frame_size(image_size)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def set_stages(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Says the sizes of the maps.

        Raises:
            XTunerError: the picture's side is no multiple of the strides.
        """
        self.channels, self.strides = list(channels), list(strides)
        coarsest = max(self.strides)
        for side, word in zip(sides(self.image_size), ("high", "wide"), strict=True):
            if side % coarsest:
                below = side // coarsest * coarsest
                sizes = f"{below} or {below + coarsest}" if below else str(coarsest)
                raise XTunerError(
                    f"the high-resolution picture is {side} px {'wide' if isinstance(self.image_size, int) else word}, "
                    f"which its encoder's stride of {coarsest} px does not divide: choose a multiple of it, {sizes} "
                    "for instance (setting image_size_aux)."
                )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the last stage map."""
        return self.grids[-1]

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) of each stage map."""
        height, width = sides(self.image_size)
        return [(height // stride, width // stride) for stride in self.strides]

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The stages, first to last; the first holds the stem."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(I, 3, S, S) → one (I, C_i, S / stride_i, S / stride_i) per stage, finest first."""
        raise NotImplementedError
