"""The weights of a checkpoint's whole model one after the other: memory for one part and one file, not for two
models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from mg_llava.model.checkpoint_names import own_names
from mg_llava.model.vision import CONNECTORS
from xtuner.model.files.base import differences, open_on_base, refuse
from xtuner.model.files.checkpoints import load_parts, refuse_left_adapters
from xtuner.model.files.frozen import base_weights, mark_weights
from xtuner.model.files.weight_files import Weight
from xtuner.registry import build

if TYPE_CHECKING:
    from pathlib import Path

    from mg_llava.model.mg_llava import MGLLaVA


class CheckpointWeights:
    """All weights of the model that a checkpoint and its config describe.

    They are its own, those of the checkpoint that it stands on, and of other frozen parts those of their own files.

    Args:
        model: its shape, built under `meta_init`.
        model_node: the resolved config node that `model` was built from.
        checkpoint: anything that `open_weights` reads, with our names or the published ones.
        dtype: number format of all weights; None = as the config builds each part.
        base: where the checkpoint that it stands on is now, if not where it was.

    Attributes:
        loaded_parts: parts that the checkpoint, or what it stands on, holds.
        trained_parts: parts that the checkpoint itself holds.

    Raises:
        XTunerError: a trained part is absent from the checkpoint, incomplete or of another shape.
    """

    def __init__(
        self,
        model: MGLLaVA,
        model_node: Mapping[str, Any],
        checkpoint: str | Path,
        dtype: torch.dtype | None = None,
        base: str | Path | None = None,
    ) -> None:
        self.model = model
        self.model_node = model_node
        self.dtype = dtype
        self.checkpoint = checkpoint
        self.weights: dict[str, Weight]
        opened = open_on_base(checkpoint, own_names, base, model_node.get("pretrained_pth"))
        self.weights, self.base, self._held = opened.weights, opened.base, opened.held
        self._partial = opened.partial | model.partly_held(opened.weights)
        shapes = {name: torch.empty(weight.shape, device="meta") for name, weight in self.weights.items()}
        parts = model.parts()
        required = {*model.trainable, *(name for name in CONNECTORS if name in parts)}
        # loading shapes into shapes finds everything that does not fit, and moves nothing
        report = load_parts(parts, shapes, sorted(required), source=f"checkpoint '{checkpoint}'", partial=self._partial)
        report.log(str(checkpoint))
        refuse_left_adapters(report, checkpoint)
        self.loaded_parts = report.loaded_parts
        self.trained_parts = [name for name in self.loaded_parts if name in self._held]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.model.parts():
            yield from self.part(name)

    def part(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the weights of one part by full name.

        Raises:
            XTunerError: the checkpoint stands on other weights than these.
        """
        shapes = self.model.parts()[name].state_dict()
        skipped = tied_names(self.model)
        held = self._held.get(name, set())
        own: dict[str, torch.Tensor] = {}
        if name not in self.loaded_parts or name in self._partial:
            # one part at a time in memory
            built = build(self.model_node[name])
            self._check(name, base_weights(built, held))
            own = built.state_dict()
        else:
            self._check(name, self._in_order(name, skipped))
        for key, shape in shapes.items():
            full = f"{name}.{key}"
            if full in skipped:
                continue
            if key in own and full not in self.weights:
                yield full, self._cast(own.pop(key), None)
            else:
                yield full, self._cast(self._read(full, skipped), shape.dtype)

    def _in_order(self, part: str, skipped: set[str]) -> Iterator[torch.Tensor]:
        """The weights of a part that the checkpoint stands on, as they were when it was trained on them."""
        names = {id(value): key for key, value in self.model.parts()[part].named_parameters()}
        for shape in base_weights(self.model.parts()[part], self._held.get(part, ())):
            assert isinstance(shape, torch.Tensor)
            yield self._read(f"{part}.{names[id(shape)]}", skipped).to(shape.dtype)

    def _check(self, name: str, weights: Iterator[Any]) -> None:
        if self.base is None or name not in self.base["parts"]:
            return
        found = differences(self.base, {name: mark_weights(weights)})
        if found:
            raise refuse(self.checkpoint, found)

    def _read(self, name: str, tied: set[str]) -> torch.Tensor:
        # of tied weights a checkpoint may hold another name
        source = name if name in self.weights else next(other for other in tied if other in self.weights)
        return self.weights[source].load()

    def _cast(self, tensor: torch.Tensor, own: torch.dtype | None) -> torch.Tensor:
        wanted = self.dtype or own
        return tensor if wanted is None or not tensor.is_floating_point() else tensor.to(wanted)


def tied_names(model: MGLLaVA) -> set[str]:
    """Returns the names of the weights that are the input embedding under another name."""
    embedding = model.llm.get_input_embeddings().weight
    names = [name for name, value in model.llm.named_parameters(remove_duplicate=False) if value is embedding]
    own = next(name for name, value in model.llm.named_parameters() if value is embedding)
    return {f"llm.{name}" for name in names if name != own}
