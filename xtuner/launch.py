"""Starting one command as several processes, by the variables that XTuner's users know."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from xtuner.errors import XTunerError

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that the launcher passes on to the ranks."""

_CODE_FILE = "XTUNER_EXIT_CODE_FILE"
_PR_SET_PDEATHSIG = 1
_COUNTED = ("gpu", "auto", "cpu")
"""Words of torchrun's for as many processes as a machine has GPUs, GPUs or else cores, cores."""


def torchrun_command(arguments: Sequence[str], environ: Mapping[str, str]) -> list[str] | None:
    """Returns the command that runs ``xtuner`` with `arguments` under torchrun, or None where one process is
    meant.

    Args:
        arguments: of ``xtuner``, the command's name first.
        environ: NPROC_PER_NODE (a number, ``gpu`` or ``auto``), NNODES, NODE_RANK, ADDR, PORT. A process that
            torchrun started already (it has LOCAL_RANK) is never multiplied again.

    Raises:
        XTunerError: several nodes without ADDR, or a variable that is not a number.
    """
    per_node = environ.get("NPROC_PER_NODE", "1")
    nodes = _number(environ, "NNODES", 1)
    if "LOCAL_RANK" in environ or (per_node == "1" and nodes == 1):
        return None
    if per_node not in _COUNTED:
        _number(environ, "NPROC_PER_NODE", 1)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={per_node}"]
    if nodes == 1 and "PORT" not in environ:
        command.append("--standalone")  # picks a free port
    else:
        if nodes > 1 and "ADDR" not in environ:
            raise XTunerError(f"NNODES is {nodes}, but ADDR is not set: give the address of the node with NODE_RANK=0.")
        command += [
            f"--nnodes={nodes}",
            f"--node_rank={_number(environ, 'NODE_RANK', 0)}",
            f"--master_addr={environ.get('ADDR', '127.0.0.1')}",
            f"--master_port={_number(environ, 'PORT', 29500)}",
        ]
    return [*command, "-m", "xtuner", *arguments]


def count_processes(environ: Mapping[str, str]) -> int:
    """Returns how many processes a training has on all machines, by the variables of `torchrun_command`.

    Raises:
        XTunerError: a variable is not a number.
    """
    per_node = environ.get("NPROC_PER_NODE", "1")
    if per_node not in _COUNTED:
        return max(1, _number(environ, "NPROC_PER_NODE", 1)) * max(1, _number(environ, "NNODES", 1))
    import torch

    gpus = 0 if per_node == "cpu" else torch.cuda.device_count()
    return max(1, gpus or (0 if per_node == "gpu" else os.cpu_count() or 1)) * _number(environ, "NNODES", 1)


def run_ranks(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs `torchrun_command`'s answer and waits; returns the exit code.

    torchrun turns every code of its ranks into 1 and gives them half a minute after a signal, which may be less than a
    step and a checkpoint take. So it runs in a session of its own, signals go straight to the ranks, and the code that
    they agreed on (see `leave_exit_code`; script/launch.sh does the same for srun) comes back by a file. A second
    signal ends torchrun itself.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # without a number every process would start a thread per core
    per_node = next((c.split("=")[1] for c in command if c.startswith("--nproc_per_node=")), "1")
    count = int(per_node) if per_node.isdigit() else 1
    with tempfile.TemporaryDirectory(prefix="xtuner_") as folder:
        code_file = Path(folder) / "exit_code"
        variables = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
            **environ,
            _CODE_FILE: str(code_file),
        }
        process = subprocess.Popen(list(command), env=variables, start_new_session=True, preexec_fn=_die_with_parent)
        former = {number: signal.signal(number, _forwarder(process)) for number in FORWARDED}
        try:
            code = process.wait()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        if code != 0 and code_file.is_file():
            return int(code_file.read_text())
        # killed by a signal: as a shell reports it
        return 128 - code if code < 0 else code


def leave_exit_code(code: int, environ: Mapping[str, str]) -> None:
    """Tells the launcher the exit code that the ranks are about to end with; nothing without a launcher.

    Called by one rank, before any rank leaves: a launcher may end the others when the first one does.
    """
    if _CODE_FILE in environ:
        Path(environ[_CODE_FILE]).write_text(str(code))


def _forwarder(process: subprocess.Popen[bytes]) -> Callable[[int, FrameType | None], None]:
    """Returns a handler that passes a first signal to the ranks and a second one to torchrun."""
    seen: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        try:
            targets = psutil.Process(process.pid).children() if len(seen) == 1 else [psutil.Process(process.pid)]
            for target in targets:
                target.send_signal(number if len(seen) == 1 else signal.SIGTERM)
        except psutil.NoSuchProcess:
            return  # ended in between

    return forward


def _die_with_parent() -> None:
    """Asks Linux to end torchrun, and by it the ranks, when this process is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    value = environ.get(name, str(default))
    if not value.isdigit():
        raise XTunerError(f"{name} is '{value}': expected a number.")
    return int(value)
