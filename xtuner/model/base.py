"""What every model of this framework has in common: parts that are trained or frozen, and what is saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import BaseModel
from torch import nn

from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.model.files.base import Base, differences, refuse
from xtuner.model.files.frozen import Marks, base_weights, mark_weights
from xtuner.model.meta import in_meta_init
from xtuner.model.selection import choose

if TYPE_CHECKING:
    from peft import LoraConfig

    from xtuner.model.flops import CostWeights

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class TrainableParts(BaseModel):
    """A model made of named parts, each trained, frozen, trained in some of its weights, or by adapters (LoRA).

    Freezing is one method, `set_trainable`: it decides what gets gradients, what stays in eval mode and what
    checkpoints hold. Subclasses say their parts in `part_names`.
    """

    part_names: tuple[str, ...] = ()
    """Attributes that hold the parts, in the order of the forward pass; a part may be None."""

    def __init__(self, data_preprocessor: nn.Module | None = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self._trainable: tuple[str, ...] = ()
        self._adapters: dict[str, frozenset[str]] = {}
        self._chosen: dict[str, frozenset[str]] = {}
        self.adapter_settings: dict[str, LoraConfig] = {}
        self.from_checkpoint: frozenset[str] = frozenset()
        """Parts whose weights, adapters aside, are those of the checkpoint that was loaded."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parts that are trained, wholly or not."""
        return self._trainable

    def parts(self) -> dict[str, nn.Module]:
        """Returns the parts that this model has, by name."""
        return {name: part for name in self.part_names if (part := getattr(self, name)) is not None}

    def add_adapters(self, part: str, lora: LoraConfig, setting: str) -> None:
        """Gives a part adapters: they alone are trained of it from now on, and saved.

        Args:
            part: its name.
            lora: peft's settings.
            setting: name of the config's setting, for messages.

        Raises:
            XTunerError: no layer has a name that `lora` targets.
        """
        from xtuner.model.lora import add_adapters  # peft takes a second, and few runs need it

        self._adapters[part] = add_adapters(getattr(self, part), lora, setting)
        self.adapter_settings[part] = lora

    def merged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the weights of all parts by full name, adapters added; the model is of no use afterwards."""
        from xtuner.model.lora import merged_weights

        for name, part in self.parts().items():
            for key, value in merged_weights(part):
                yield f"{name}.{key}", value

    def save_adapters(self, folder: Path, bases: Mapping[str, str]) -> None:
        """Writes each part's adapters to ``<folder>/<part>``, as peft reads them.

        Args:
            folder: target.
            bases: name or path of the model that each part was built from.
        """
        from xtuner.model.lora import save_adapters

        for part, lora in self.adapter_settings.items():
            save_adapters(getattr(self, part), lora, folder / part, bases.get(part, ""))

    def is_trained(self, name: str) -> bool:
        """True for the full name of a weight or buffer that belongs to what is trained and saved."""
        part, _, rest = name.partition(".")
        some = self._some_of(part)
        return part in self._trainable and (some is None or rest in some)

    def _some_of(self, part: str) -> frozenset[str] | None:
        """Names, within a trained part, of what is trained of it; None = all."""
        return self._adapters.get(part, self._chosen.get(part))

    def unsaved_parts(self) -> list[str]:
        """Returns the parts of which checkpoints leave weights out: all those that are not wholly trained."""
        return [name for name in self.parts() if name not in self._trainable or self._some_of(name) is not None]

    def partly_held(self, names: Collection[str]) -> set[str]:
        """Returns the parts that are trained in some of their weights and of which `names` has all of these."""
        some = {part: [name for name, _ in getattr(self, part).named_parameters()] for part in self._chosen}
        return {
            part
            for part, inner in some.items()
            if all(f"{part}.{name}" in names for name in inner if name in self._chosen[part])
        }

    def base_marks(self, gather: Callable[[Any], list[Any]] = lambda own: [own]) -> dict[str, Marks | None]:
        """Returns marks of each part in `unsaved_parts`; arguments as of `mark_weights`."""
        return {name: self.part_marks(name, gather) for name in self.unsaved_parts()}

    def part_marks(
        self,
        name: str,
        gather: Callable[[Any], list[Any]] = lambda own: [own],
        left_out: Collection[str] | None = None,
    ) -> Marks | None:
        """Returns marks of one part's weights, but for `left_out` (those that are trained); None where unknown."""
        left_out = self._some_of(name) if left_out is None else left_out
        return mark_weights(base_weights(self.parts()[name], left_out or ()), gather)

    def check_base(
        self, base: Base, source: str | Path, strict: Collection[str], held: Mapping[str, Collection[str]] | None = None
    ) -> None:
        """Compares this model's weights with those that a checkpoint stands on.

        Args:
            base: of the checkpoint, whose weights are loaded.
            source: the checkpoint, for messages.
            strict: parts that have to be the same; others are reported where they differ.
            held: names within each part that the checkpoint holds itself, which are not compared.

        Raises:
            XTunerError: one of `strict` differs.
        """
        parts, held = self.parts(), held or {}
        left_out = {name: self._adapters.get(name, held.get(name, ())) for name in base["parts"] if name in parts}
        found = differences(base, {name: self.part_marks(name, left_out=some) for name, some in left_out.items()})
        refused = {name: line for name, line in found.items() if name in strict}
        if refused:
            raise refuse(source, refused)
        for line in found.values():
            get_logger().warning("%s was trained on %s", source, line)

    def set_trainable(self, names: Collection[str]) -> None:
        """Trains what `names` say and all adapters, freezes all else, and logs each part with its parameters.

        Args:
            names: parts, and patterns of weights in them; see `xtuner.model.selection.matching`. A part that only this
                very model goes without is skipped.

        Raises:
            XTunerError: a name in no way a part, a pattern that matches nothing or everything, or one for a part that
                adapters train.
        """
        parts = self.parts()
        weights = {name: [key for key, _ in part.named_parameters()] for name, part in parts.items()}
        chosen = choose(names, self.part_names, weights, type(self).__name__)
        both = [name for name, some in chosen.items() if some is not None and name in self._adapters]
        if both:
            raise XTunerError(
                f"trainable has a pattern for {both[0]}, which adapters train: remove the pattern, or the adapters' "
                "setting (llm_lora, visual_encoder_lora)."
            )
        self._trainable = tuple(name for name in parts if name in chosen or name in self._adapters)
        self._chosen = {
            name: some | _buffers_beside(parts[name], some) for name, some in chosen.items() if some is not None
        }
        for name, part in parts.items():
            counts = [0, 0]
            for key, parameter in part.named_parameters():
                trained = self.is_trained(f"{name}.{key}")
                if parameter.is_floating_point():
                    parameter.requires_grad_(trained)
                counts[trained] += getattr(parameter, "ds_numel", parameter.numel())
            state = "adapters" if name in self._adapters else "trained" if name in self._trainable else "frozen"
            state = "partly" if name in self._chosen else state
            of_them = f", {counts[1] / 1e6:.2f} M of them trained" if state in ("adapters", "partly") else ""
            # a model that only its shape is wanted of, or that is loaded from an exported folder, is not to be trained
            log = get_logger().debug if in_meta_init() else get_logger().info
            log("%-16s %-8s %9.2f M parameters%s", name, state, sum(counts) / 1e6, of_them)
        self.train(self.training)

    def train(self, mode: bool = True) -> TrainableParts:
        """Sets the mode; what is frozen stays in eval mode, so that no DropPath or dropout acts in it.

        Of a part that is trained in some of its weights, the modules without a frozen weight are in train mode. Batch
        norms keep their statistics: those of a micro-batch would differ between ranks.
        """
        super().train(mode)
        for name, part in self.parts().items():
            if name not in self._trainable or name in self._chosen:
                part.eval()
            if mode and name in self._chosen:
                for module in part.modules():
                    own = [parameter.requires_grad for parameter in module.parameters()]
                    if own and all(own):
                        module.train()
            for module in part.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()
        return self

    def step_flops(self, batch: Mapping[str, Any]) -> float:
        """Returns the floating-point operations of forward and backward pass for a collated batch; 0 = not known."""
        return 0.0

    def cost_weights(self) -> CostWeights | None:
        """Returns what a sample's forward and backward pass costs by its tokens and pictures; None = not known."""
        return None

    def has_rare_inputs(self, batch: Mapping[str, Any]) -> bool:
        """True where a collated batch holds inputs that other batches may lack (pictures, say), for which parts of the
        model run that otherwise do not.
        """
        return False

    def keep_in_step(self, batch: dict[str, Any], elsewhere: bool, partitioned: bool) -> dict[str, Any]:
        """Returns a prepared batch without rare inputs so changed that this rank keeps in step with the others.

        Called under ZeRO-2, which sums gradients over ranks in the order in which they come, so that trained modules
        must run alike; and under ZeRO-3, whose ranks also gather the weights of each module together.

        Args:
            batch: keyword arguments of `forward`.
            elsewhere: another rank's batch has rare inputs.
            partitioned: ZeRO-3.
        """
        return batch

    def init_weights(self) -> None:
        """Does nothing: every part comes initialised or loaded, and mmengine's runner would overwrite
        them.
        """

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the weights of the trained parts: what checkpoints hold."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        state = super().state_dict(*args, **kwargs)
        for key in [key for key in state if key.startswith(prefix) and not self.is_trained(key.removeprefix(prefix))]:
            del state[key]
        return state

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the weights of all parts, frozen ones too."""
        return {
            f"{name}.{key}": value for name, part in self.parts().items() for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights by name; frozen parts may be absent, since checkpoints do not hold them.

        Raises:
            RuntimeError: with `strict`, a weight of a trained part is absent, or one is unknown (torch's
                convention).
            XTunerError: a weight has another shape.
        """
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            detail = "\n".join(f"  - {line.strip()}" for line in str(error).splitlines()[1:])
            raise XTunerError(
                f"the checkpoint does not fit this model:\n{detail}\nUse the config that it was trained with."
            ) from error
        missing = [key for key in result.missing_keys if self.is_trained(key)]
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(f"missing weights: {missing}; unexpected weights: {result.unexpected_keys}")
        result.missing_keys[:] = missing
        return result


def _buffers_beside(part: nn.Module, names: frozenset[str]) -> set[str]:
    """Names of the buffers in the modules of `part` that have one of the weights `names`: running means, say."""
    found = set()
    for place, module in part.named_modules():
        own, buffers = (
            {f"{place}.{name}".removeprefix(".") for name, _ in tensors(recurse=False)}
            for tensors in (module.named_parameters, module.named_buffers)
        )
        if own & names:
            found |= buffers
    return found
