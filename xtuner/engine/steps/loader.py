"""The training data loader from a config's ``train_dataloader``."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from xtuner.data.batches.stream import StreamOrder
from xtuner.engine.processes.environment import Environment
from xtuner.errors import XTunerError
from xtuner.registry import build, resolve_type

_END_SECONDS = 2.0
_OF_THE_DATA = ("groups", "source_of", "repeats", "num_images")
"""What a data set may tell its sampler beside the lengths."""
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


def build_train_dataloader(
    node: Mapping[str, Any], dataset: Any, grad_accum: int, environment: Environment, seed: int
) -> DataLoader | StreamLoader:
    """Builds the loader whose batch sampler yields this rank's micro-batches without end.

    Args:
        node: ``dict(batch_size=, num_workers=, sampler=dict(type=...))``.
        dataset: a stream (see `StreamLoader`); or with ``lengths`` (tokens per sample), ``collate_fn`` and, where it
            has them, ``groups`` that should not meet in a batch, ``num_images`` and ``source_of`` each sample, and
            ``repeats`` of each source.
        grad_accum: micro-batches of a rank per optimizer step.
        environment: this process.
        seed: of the order of samples.
    """
    sampler_node = node["sampler"]
    if isinstance(dataset, IterableDataset):
        tokens = sampler_node.get("max_tokens_per_batch")
        return StreamLoader(dataset, node["batch_size"], grad_accum, environment, seed, node["num_workers"], tokens)
    taken = getattr(resolve_type(sampler_node["type"]), "provided_by_parent", ())
    known = {name: getattr(dataset, name, None) for name in _OF_THE_DATA if name in taken}
    extra = {name: value for name, value in known.items() if value is not None}
    sampler = build(
        sampler_node,
        lengths=dataset.lengths,
        batch_size=node["batch_size"],
        grad_accum=grad_accum,
        rank=environment.rank,
        world_size=environment.world_size,
        seed=seed,
        **extra,
    )
    return SteadyLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=node["num_workers"],
        collate_fn=dataset.collate_fn,
        pin_memory=environment.device.type == "cuda",
        # its own generator: the loader must not draw from the one that dropout uses
        generator=torch.Generator().manual_seed(seed + environment.rank),
    )


class SteadyLoader(DataLoader):
    """A loader whose workers leave signals to the process that they work for.

    Slurm sends its warning to every process of a job, and a terminal Ctrl-C to every one in front; a worker that ended
    by it would end the run before it has saved. A SIGTERM of the process itself still ends the worker: by it torch and
    Python end those that are left over.

    Args:
        (all): of ``DataLoader``, but for ``worker_init_fn``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "worker_init_fn": _outlive_signals})

    def __iter__(self) -> Any:
        # workers inherit the mask, so that no signal finds one before it has made itself ready
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        of_children = signal.getsignal(signal.SIGCHLD)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if threading.current_thread() is threading.main_thread():
                # torch's handler would raise in the middle of a step; asked for its batch, a dead worker is found too
                signal.signal(signal.SIGCHLD, of_children or signal.SIG_DFL)


class StreamLoader:
    """A loader of micro-batches that a stream makes itself, in its workers.

    Args:
        dataset: an iterable data set with ``shards``, ``buffer`` and ``reader(order)``, an iterable data set of
            micro-batches from the order's places on.
        batch_size: samples of a micro-batch.
        grad_accum: micro-batches of a rank per optimizer step.
        environment: this process.
        seed: of the order of samples.
        num_workers: processes that read.
        max_tokens: most tokens of a micro-batch, instead of `batch_size`.

    Attributes:
        batch_sampler: the order of the stream, and where it stands.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        grad_accum: int,
        environment: Environment,
        seed: int,
        num_workers: int,
        max_tokens: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self.environment = environment
        self.batch_sampler = StreamOrder(
            name=dataset.name,
            num_shards=len(dataset.shards),
            buffer=dataset.buffer,
            batch_size=batch_size,
            grad_accum=grad_accum,
            rank=environment.rank,
            world_size=environment.world_size,
            seed=seed,
            workers=max(1, num_workers),
            max_tokens_per_batch=max_tokens,
        )

    def __iter__(self) -> Iterator[Any]:
        order = self.batch_sampler
        loader = SteadyLoader(
            self.dataset.reader(order),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.environment.device.type == "cuda",
            generator=torch.Generator().manual_seed(order.seed + order.rank),
        )
        return iter(loader)


class WorkerLostError(XTunerError):
    """A worker of a loader has ended although nobody asked it to."""


def lost_worker(batches: Iterator[Any], rank: int) -> WorkerLostError | None:
    """Returns the error that names the worker of a loader's iterator that has ended badly; None where none has."""
    workers = getattr(batches, "_workers", ())
    # the system closes its connections a moment before its exit code can be read
    ended = wait([worker.sentinel for worker in workers], _END_SECONDS)
    for number, worker in enumerate(workers):
        if worker.sentinel in ended:
            worker.join()
        code = worker.exitcode
        if code in (None, 0):
            continue
        how = f"ended with exit code {code}"
        if code < 0:
            how = "was killed (out of memory?)" if -code == signal.SIGKILL else f"got {signal.Signals(-code).name}"
        return WorkerLostError(
            f"worker {number} of rank {rank} {how}. Lower dataloader_num_workers or batch_size, or give the job more "
            "host memory; --resume auto continues."
        )
    return None


def _outlive_signals(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # a handler would not tell who has sent a signal, so SIGTERM stays blocked and a thread waits for it
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
    threading.Thread(target=_end_by_parent, args=(os.getppid(),), daemon=True).start()


def _end_by_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)
