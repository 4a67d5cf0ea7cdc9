"""Where this process stands among the others, and the start of their communication."""

from __future__ import annotations

import datetime
import gc
import logging
import os
import random
import socket
import subprocess
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed

from xtuner.compat import mend
from xtuner.engine.processes.peers import waiting
from xtuner.errors import XTunerError
from xtuner.log import get_logger

LAUNCHERS = ("none", "pytorch", "slurm")
_LAST_WORK_SECONDS = 0.1


@dataclass(frozen=True)
class Environment:
    """One process of a run.

    Attributes:
        launcher: who started it: one of ``LAUNCHERS``.
        rank: its number among `world_size` processes.
        local_rank: its number on this machine, which is also its GPU.
        device: where it computes.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    device: torch.device


def infer_launcher(environ: MutableMapping[str, str]) -> str:
    """Returns ``pytorch`` inside torchrun, else ``none``: Slurm runs single tasks too, so it is asked for."""
    return "pytorch" if "TORCHELASTIC_RUN_ID" in environ else "none"


def _first_slurm_host(nodes: str) -> str:
    """Expands Slurm's node list (``gpu[01-04]``) and returns its first host."""
    listing = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return listing.stdout.split()[0]


def adopt_slurm(environ: MutableMapping[str, str]) -> None:
    """Writes torch's rendezvous variables into `environ` from those that srun sets; MASTER_ADDR and
    MASTER_PORT win.

    Raises:
        XTunerError: not started by srun.
    """
    needed = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST")
    missing = [name for name in needed if name not in environ]
    if missing:
        raise XTunerError(
            f"--launcher slurm needs environment variables that are not set: {missing}. Start the command with srun."
        )
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["WORLD_SIZE"] = environ["SLURM_NTASKS"]
    environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
    if "MASTER_ADDR" not in environ:
        environ["MASTER_ADDR"] = _first_slurm_host(environ["SLURM_NODELIST"])
    # jobs that share a node must not share a port; the job's number tells them apart
    environ.setdefault("MASTER_PORT", str(20000 + int(environ.get("SLURM_JOB_ID", "0")) % 20000))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _adopt_single(environ: MutableMapping[str, str]) -> None:
    """Describes a world of one process, for DeepSpeed, which always wants a process group."""
    environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))


def place_among(launcher: str | None) -> tuple[int, int, int]:
    """Returns rank, number of processes and rank on this machine, before the processes have met.

    Args:
        launcher: one of ``LAUNCHERS``; None infers it.

    Raises:
        XTunerError: the launcher's variables are not there.
    """
    launcher = launcher or infer_launcher(os.environ)
    if launcher == "none":
        return 0, 1, 0
    if launcher == "slurm":
        adopt_slurm(os.environ)
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise XTunerError(
            f"--launcher {launcher} needs environment variables that are not set: {missing}. Start with torchrun, "
            "or set NPROC_PER_NODE and drop --launcher."
        )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


def setup_environment(launcher: str | None = None, always_group: bool = False) -> Environment:
    """Joins the process group, where there are several processes, and picks the device.

    Args:
        launcher: one of ``LAUNCHERS``; None infers it.
        always_group: make a process group for a single process too (DeepSpeed).

    Raises:
        XTunerError: the launcher's variables are not there.
    """
    launcher = launcher or infer_launcher(os.environ)
    if launcher == "none" and always_group:
        _adopt_single(os.environ)
    rank, world_size, local_rank = place_among(launcher)
    if launcher != "none":
        # mmengine would set it to 1 and warn
        os.environ.setdefault("MKL_NUM_THREADS", os.environ.setdefault("OMP_NUM_THREADS", "1"))
    # the logger may be older than these numbers (Slurm)
    get_logger().setLevel(logging.INFO if rank == 0 else logging.WARNING)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if (launcher != "none" or always_group) and not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        with waiting():
            distributed.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    return Environment(launcher, rank, world_size, local_rank, device)


def join_deepspeed() -> None:
    """Makes DeepSpeed adopt the process group that is there."""
    from deepspeed import comm

    mend("deepspeed.ops")
    # auto_mpi_discovery would want mpi4py
    comm.init_distributed(dist_backend=distributed.get_backend(), auto_mpi_discovery=False)


def close_environment() -> None:
    """Leaves the process group, if there is one, and ends its threads: one that still lets go of a tensor when the
    interpreter ends would abort the process, and with it a run that has succeeded.

    Models that hold the group (DDP) must be given up before.
    """
    if distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()
        # DeepSpeed keeps its engine, and by it the group: its threads let go of their last tensor while this one sleeps
        time.sleep(_LAST_WORK_SECONDS)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Collective:
    """Small exchanges between the ranks' hosts, over gloo, so that no GPU is waited for.

    With one process every method returns its argument.
    """

    def __init__(self) -> None:
        self.active = distributed.is_initialized() and distributed.get_world_size() > 1
        self.rank = distributed.get_rank() if self.active else 0
        self.world_size = distributed.get_world_size() if self.active else 1
        self._group: Any = None
        if self.active and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Returns the sums over all ranks, in double precision."""
        if not self.active:
            return [float(number) for number in numbers]
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with waiting():
            distributed.all_reduce(tensor, group=self._group)
        return tensor.tolist()

    def gather(self, item: Any) -> list[Any]:
        """Returns every rank's `item`, in the order of ranks, on every rank."""
        if not self.active:
            return [item]
        items: list[Any] = [None] * self.world_size
        with waiting():
            distributed.all_gather_object(items, item, group=self._group)
        return items

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.sum([0.0])
