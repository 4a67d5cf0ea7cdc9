"""mmengine's DeepSpeed strategy without what breaks it, and the training backend on top of its engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from mmengine._strategy.deepspeed import DeepSpeedStrategy, MMDeepSpeedEngineWrapper
from torch import nn

from xtuner.compat import mend
from xtuner.engine.checkpoints.checkpoint import flush
from xtuner.engine.checkpoints.integrity import TRAINER_FILE, is_universal, list_files
from xtuner.engine.checkpoints.saving import to_host, write_file
from xtuner.engine.processes.environment import Environment, join_deepspeed
from xtuner.engine.steps.optim import StepOptimizer
from xtuner.errors import XTunerError
from xtuner.model.files.pickles import load_pickle, pickles_in, restricted_loading

mend("mmengine._strategy.deepspeed")
# torch 2.14 has new names for what DeepSpeed calls in every step of ZeRO-3: two lines a step
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's engine around a model and optimizer that are built already.

    Differs from mmengine's: no ``init_weights`` (it would overwrite loaded weights), any device, no MPI, and
    a process group that exists (`setup_environment` makes it, also for one process).

    Args:
        config: of DeepSpeed, complete: see `deepspeed_settings.engine_config`.
        environment: this process.
        seed: start of all random numbers.
        work_dir: the run's folder.
        experiment_name: names the log.
    """

    def __init__(
        self, config: dict[str, Any], environment: Environment, seed: int, work_dir: str, experiment_name: str
    ) -> None:
        join_deepspeed()
        super().__init__(
            config=config,
            gradient_accumulation_steps=config["gradient_accumulation_steps"],
            exclude_frozen_parameters=True,
            work_dir=work_dir,
            experiment_name=experiment_name,
            env_kwargs=dict(launcher=environment.launcher, randomness=dict(seed=seed)),
        )

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        return model

    def _wrap_model(self, model: nn.Module) -> MMDeepSpeedEngineWrapper:
        import deepspeed

        engine, self.optim_wrapper.optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=self.optim_wrapper.optimizer,  # type: ignore[attr-defined]
            config=self.config,
            dist_init_required=False,
        )
        return MMDeepSpeedEngineWrapper(model=engine)


class DeepSpeedBackend:
    """What a step does with DeepSpeed's engine; see `TrainBackend`.

    Args:
        engine: of DeepSpeed.
        optimizer: the wrapper whose inner optimizer is the engine's.
        device: where the engine computes.
    """

    def __init__(self, engine: Any, optimizer: StepOptimizer, device: torch.device) -> None:
        self.engine = engine
        self.optimizer = optimizer
        self.device = device

    @property
    def zero_stage(self) -> int:
        """The engine's ZeRO stage; see `TrainBackend`."""
        return int(self.engine.zero_optimization_stage())

    @property
    def module(self) -> Any:
        """The model itself; under ZeRO-3 its parameters are partitioned."""
        return self.engine.module

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model's data preprocessor."""
        return self.module.data_preprocessor(batch, True)

    def accumulate(self, batch: dict[str, Any], weight: float, last: bool) -> dict[str, torch.Tensor]:
        """Adds the gradients of ``weight * loss_sum``; after the `last` one the engine clips and updates."""
        output = self.engine(**batch, mode="loss")
        # the engine divides by the accumulation, which the weight holds already
        self.engine.backward(output["loss_sum"].float() * (weight * self.engine.gradient_accumulation_steps()))
        if last != self.engine.is_gradient_accumulation_boundary():
            raise XTunerError("DeepSpeed and the training loop disagree about where a step ends: create a new runner.")
        self.engine.step()
        return output

    def update(self) -> torch.Tensor | float | None:
        """Returns the gradients' norm before clipping; the engine has updated already."""
        return self.engine.get_global_grad_norm()

    def evaluating(self) -> AbstractContextManager[Any]:
        """Returns the context in which the model generates: none, the engine holds the weights in their format."""
        return nullcontext()

    def stage(self, temporary: Path, trainer: dict[str, Any], copy: bool) -> Callable[[], None]:
        """Each rank writes its shards, rank 0 also the shared files; see `SavingBackend`."""
        collected = CollectingEngine(copy)
        former, self.engine.checkpoint_engine = self.engine.checkpoint_engine, collected
        try:
            self.engine.save_checkpoint(
                str(temporary.parent), tag=temporary.name, save_latest=False, exclude_frozen_parameters=True
            )
        finally:
            self.engine.checkpoint_engine = former

        def write() -> None:
            temporary.mkdir(exist_ok=True)
            for name, content in collected.files.items():
                write_file(content, temporary / name)

        return write

    def seal(self, temporary: Path, trainer: dict[str, Any]) -> None:
        """Adds the trainer file, with the names and sizes of all shards; a folder that has it is complete."""
        facts = {**trainer, "files": list_files(temporary)}
        write_file({"trainer": facts}, temporary / TRAINER_FILE)
        flush(temporary)

    def read_trainer(self, path: Path) -> dict[str, Any]:
        """Returns the `trainer` part of a checkpoint.

        Raises:
            XTunerError: it was made without DeepSpeed, or by another number of processes.
        """
        if not path.is_dir():
            raise XTunerError(f"{path} was saved without DeepSpeed: resume it without --deepspeed.")
        trainer = load_pickle(path / TRAINER_FILE)["trainer"]
        if trainer["world_size"] != self.engine.world_size and not is_universal(path):
            way = (
                f"start a new run from its weights: drop --resume and add --cfg-options pretrained_pth={path}"
                if self.zero_stage == 3
                else f"convert it: xtuner convert universal {path} TARGET, then --resume TARGET, with processes x "
                "batch_size x accumulative_counts as before"
            )
            raise XTunerError(
                f"{path} was saved by {trainer['world_size']} processes, this run has {self.engine.world_size}: its "
                f"shards fit only that number. Start that many (NPROC_PER_NODE, NNODES), or {way}."
            )
        return trainer

    def load(self, path: Path) -> None:
        """Takes weights and optimizer from this rank's shards; see `restricted_loading`."""
        with restricted_loading(pickles_in(path)):
            # strict would ask for the frozen weights, which checkpoints leave out
            found, _ = self.engine.load_checkpoint(str(path.parent), tag=path.name, load_module_strict=False)
        if found is None:
            raise XTunerError(f"{path} holds no shards that DeepSpeed can read: take an older checkpoint.")


class CollectingEngine(CheckpointEngine):
    """Collects what DeepSpeed would write, so that it can be written elsewhere or later.

    Args:
        copy: take copies in host memory, since the tensors will change.
    """

    def __init__(self, copy: bool) -> None:
        super().__init__()
        self.copy = copy
        self.files: dict[str, Any] = {}

    def create(self, info: Any) -> None:
        """Nothing to prepare."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keeps a file's content under its name."""
        self.files[Path(path).name] = to_host(state_dict) if self.copy else state_dict

    def load(self, path: str, map_location: Any = None) -> Any:
        """Is never asked for: loading goes through DeepSpeed's own engine.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(path)

    def commit(self, info: Any) -> bool:
        """Says that all is well; `CheckpointSaver` commits."""
        return True
