"""Starting one command as several processes, by the variables that XTuner's users know."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from xtuner.errors import XTunerError


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
    if per_node not in ("gpu", "auto", "cpu"):
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


def replace_process(command: Sequence[str]) -> NoReturn:
    """Becomes `command`: its exit code, signals and output are then those of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    # without a number every process would start a thread per core
    per_node = next((c.split("=")[1] for c in command if c.startswith("--nproc_per_node=")), "1")
    count = int(per_node) if per_node.isdigit() else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.execvpe(command[0], list(command), os.environ)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    value = environ.get(name, str(default))
    if not value.isdigit():
        raise XTunerError(f"{name} is '{value}': expected a number.")
    return int(value)
