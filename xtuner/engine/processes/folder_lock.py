"""One run at a time in a folder, on any disk and from any machine.

The lock is a file that says who holds it, made by a link, which one of several can win only, on network disks too. Its
holder touches it every ten seconds. Whether it is fresh is told by the disk's own clock: its time is compared with that
of a file made just now beside it, so the clocks of the machines do not matter.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from xtuner.errors import XTunerError
from xtuner.log import get_logger

LOCK_FILE = ".run.lock"
REFRESH_SECONDS = 10.0
STALE_SECONDS = 60.0
_LOST = 1


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        machine: start of the machine's system and space of process numbers: two containers of one name differ.
        pid, started: process number, and when that process began, see `_start_of`.
        job, step, restarts: of Slurm: the job, its step, and how often it was requeued; empty and 0 elsewhere.
        since: when it took the lock, for people.
        token: tells this lock from every other.
    """

    host: str = "?"
    machine: str = ""
    pid: int = 0
    started: float = 0.0
    job: str = ""
    step: str = ""
    restarts: int = 0
    since: str = "?"
    token: str = ""

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> Holder:
        """Describes this process."""
        restarts = environ.get("SLURM_RESTART_COUNT", "0")
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_start_of(os.getpid()) or 0.0,
            job=environ.get("SLURM_JOB_ID", ""),
            step=environ.get("SLURM_STEP_ID", ""),
            restarts=int(restarts) if restarts.isdigit() else 0,
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=secrets.token_hex(16),
        )

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """Returns who holds the lock at `path`, with nothing known where it is cut off; None where there is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            # each of the type of its default
            return cls(**{name: type(value)(content[name]) for name, value in asdict(cls()).items()})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            return cls()

    def is_alive(self, ours: Holder) -> bool | None:
        """Tells whether the holder runs: by its process, where that is on this machine, by Slurm's words where it is
        an earlier start of this job; None where only the lock's age can tell.
        """
        if self.machine and self.machine == ours.machine:
            return _start_of(self.pid) == self.started
        requeued = self.job != "" and self.job == ours.job
        if requeued and (ours.restarts > self.restarts or ours.step == self.step):
            return False
        return None

    def __str__(self) -> str:
        """Returns the words for a message."""
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class FolderLock:
    """The lock of a folder, while it is held.

    Args:
        folder: exists.
        environ: of the process, for Slurm's variables.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.path = folder / LOCK_FILE
        self.holder = Holder.here(environ)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="folder lock", daemon=True)

    def take(self) -> None:
        """Takes the lock; waits where its holder may be dead until that is certain, a minute at most.

        Raises:
            XTunerError: another run holds it, or the folder cannot be written.
        """
        try:
            while not self._create():
                self._remove_dead()
        except OSError as error:
            raise XTunerError(
                f"--work-dir {self.folder} cannot be written ({error.strerror or error}): free some disk space, or "
                "choose another folder."
            ) from error
        self._thread.start()

    def release(self) -> None:
        """Gives the lock back, if it is still ours."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if (now := Holder.read(self.path)) is not None and now.token == self.holder.token:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        draft = self._beside("draft")
        try:
            draft.write_text(json.dumps(asdict(self.holder)) + "\n", encoding="utf-8")
            try:
                os.link(draft, self.path)
            except FileExistsError:
                # a network disk may have made the link and lost the answer
                return draft.stat().st_nlink > 1
            except OSError:
                return self._create_without_links()
            return True
        finally:
            draft.unlink(missing_ok=True)

    def _create_without_links(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self.holder)) + "\n")
        return True

    def _remove_dead(self) -> None:
        """Returns once the lock that is there has gone; a dead holder's is removed.

        Raises:
            XTunerError: its holder lives.
        """
        found, touched = Holder.read(self.path), self._touched()
        if found is None or touched is None:
            return
        alive = found.is_alive(self.holder)
        told = False
        while alive is None:
            if self._disk_time() - touched > STALE_SECONDS:
                alive = False
            elif (now := self._touched()) != touched:
                alive = None if now is None else True
                if now is None:
                    return
            else:
                if not told:
                    get_logger().info("%s is locked by %s: waiting to see whether it is alive.", self.folder, found)
                told = True
                time.sleep(REFRESH_SECONDS / 10)
        if alive:
            raise XTunerError(
                f"{self.folder} is in use by another run: {found}; wait for it or stop it, or choose another "
                "--work-dir."
            )
        self._move_away(found)

    def _move_away(self, dead: Holder) -> None:
        """Removes a dead holder's lock: one start at a time, and only while it is still that holder's."""
        guard = self.path.with_name(f"{self.path.name}.takeover")
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            self._wait_for_other_start(guard)
            return
        try:
            now = Holder.read(self.path)
            if now is not None and now.token == dead.token:
                # nothing else can take its place meanwhile: a lock is only made where there is none
                self.path.unlink(missing_ok=True)
                get_logger().info("The run that held %s has died (%s): taking over.", self.folder, dead)
        finally:
            guard.unlink(missing_ok=True)

    def _wait_for_other_start(self, guard: Path) -> None:
        """Another start removes the lock; one that was killed at it is told by its guard's age."""
        try:
            age = self._disk_time() - guard.stat().st_mtime
        except FileNotFoundError:
            return
        if age > STALE_SECONDS:
            guard.unlink(missing_ok=True)
        else:
            time.sleep(REFRESH_SECONDS / 200)

    def _keep(self) -> None:
        """Touches the lock; ends this process where another one has taken it, for two must not write one folder."""
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                now = Holder.read(self.path)
                if now is None:
                    # removed by hand: ours unless somebody is faster
                    self._create()
                elif now.token == self.holder.token:
                    os.utime(self.path)
                elif now.token:
                    get_logger().error(
                        "%s was taken over by another run, %s, after this one gave no sign for %.0f s: ending.",
                        *(self.folder, now, STALE_SECONDS),
                    )
                    os._exit(_LOST)
            except OSError as error:
                get_logger().warning("the lock %s cannot be refreshed: %s", self.path, error.strerror or error)

    def _touched(self) -> float | None:
        try:
            # opened, for network disks answer a mere stat from memory for up to a minute
            with self.path.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None

    def _disk_time(self) -> float:
        """Returns the time by the disk's clock, as the time of a file made now."""
        probe = self._beside("probe")
        try:
            probe.write_text("now", encoding="utf-8")
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _beside(self, what: str) -> Path:
        return self.folder / f"{LOCK_FILE}.{what}.{self.holder.token[:8]}"


@contextmanager
def locked(folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Holds the lock of `folder`, which is made where it is absent.

    Raises:
        XTunerError: another run holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XTunerError(
            f"--work-dir {folder} cannot be made ({error.strerror or error}): choose another folder."
        ) from error
    lock = FolderLock(folder, environ)
    lock.take()
    try:
        yield
    finally:
        lock.release()


def _machine() -> str:
    """Returns what no other machine has, nor this one after its next start, nor another container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()  # not Linux


def _start_of(pid: int) -> float | None:
    """Returns when the process `pid` began, by the clock that a machine's time is not set by; None where it is dead."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        # the name in brackets may hold anything; state and start are the first and twentieth word behind it
        words = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if words[0] in "ZX" else float(words[19])
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
