"""A vLLM that is started here, in whose place a script stands: how it ends is told in one sentence."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mg_llava.serving.proxy import child as module
from mg_llava.serving.proxy import keeper
from mg_llava.serving.proxy.child import Child
from xtuner.errors import XTunerError
from xtuner.log import get_logger

pytestmark = pytest.mark.multi_process
SERVER = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.environ.get("VLLM_API_KEY") else 500)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
print("serving on", port, flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
TOO_LONG = """
raise SystemExit('''pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (9000) is greater than the derived max_model_len (512). To allow, set X.
    For further information visit https://errors.pydantic.dev/2.12/v/value_error''')
"""
NO_MEMORY = """
import sys
print("(EngineCore pid=7) ERROR 11-29 [core.py:1] ValueError: To serve at least one request with the models's max seq "
      "len (4096), 2.0 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB).")
sys.exit("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
"""
TAKEN_MEMORY = """
import sys
print("(VllmWorker-0 pid=7) ERROR 11-29 [multiproc_executor.py:953] ValueError: Available memory on node 0 "
      "(18.08/23.54 GiB) on startup is less than desired CPU memory utilization (0.92, 21.66 GiB). On a CPU, X.")
print("(EngineCore pid=7) ERROR 11-29 [core.py:1] Exception: WorkerProc initialization failed due to an exception in a "
      "background process. See stack trace for root cause.")
sys.exit("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
"""

SHORT = f"""
import runpy, sys
keeper = runpy.run_path({keeper.__file__!r})
keeper["keep"].__globals__["_END_SECONDS"] = 0.5
keeper["keep"](sys.argv[1:])
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Child]:
    def call(code: str, *options: str) -> Child:
        monkeypatch.setattr(module, "PROGRAM", ("-c", code))
        return Child(Path("FOLDER"), "tiny", options)

    return call


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            TOO_LONG,
            r"code 1: User-specified max_model_len \(9000\) is greater .*_len \(512\); --backend-args '--max-model-",
        ),
        (NO_MEMORY, r"exit code 1: To serve at least one request .*2.0 GiB KV cache is needed.*--max-model-len N"),
        (
            TAKEN_MEMORY,
            r"exit code 1: Available memory .*\(18.08/23.54 GiB\).*21.66 GiB\); .*--gpu-memory-utilization SHARE",
        ),
        ("raise SystemExit('api_server.py: error: unrecognized arguments: --foo')", "unrecognized arguments: --foo"),
        ("import no_such_package", "exit code 1: No module named 'no_such_package'"),
        ("import os; os.kill(os.getpid(), 9)", "'FOLDER', was ended by SIGKILL"),
        ("print('hello')", "ended with exit code 0; its last lines in the log above say more"),
    ],
)
def test_one_that_ends_before_it_serves(start: Callable[..., Child], code: str, message: str) -> None:
    with start(code) as child, pytest.raises(XTunerError, match=message):
        child.wait_until_ready()


def test_one_that_ends_later_is_named_to_whoever_waits(start: Callable[..., Child]) -> None:
    ended: list[str] = []
    with start(SERVER) as child:
        child.wait_until_ready()
        child.when_ended(lambda: ended.append(child.ended))
        child.check()
        os.killpg(child._process.pid, signal.SIGKILL)
        assert "was ended by SIGKILL" in child.last_words()
        assert until(lambda: ended) and "SIGKILL" in ended[0]
        # also to one that asks later
        child.when_ended(lambda: ended.append("again"))
        assert ended[-1] == "again"
        with pytest.raises(XTunerError, match="SIGKILL"):
            child.check()


def test_it_is_stopped_and_its_log_passed_on(start: Callable[..., Child]) -> None:
    said: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    keeper = Keeper()
    get_logger().addHandler(keeper)
    try:
        with start(SERVER, "--max-num-seqs", "3") as child:
            child.wait_until_ready()
            assert until(lambda: any("vLLM: serving on" in line for line in said))
    finally:
        get_logger().removeHandler(keeper)
    assert not child.ended and child._process.poll() is not None
    # its key is in no log and on no command line, which others on the machine can read
    key = child.upstream._headers["Authorization"].split()[1]
    assert len(key) == 64 and key not in "".join(said) and key not in str(child._process.args)
    assert "--served-model-name tiny" in said[0] and "--max-num-seqs 3" in said[0]


def test_what_it_started_ends_with_it(start: Callable[..., Child], tmp_path: Path) -> None:
    """An engine process of vLLM's that does not listen to SIGTERM."""
    pid = tmp_path / "pid"
    code = f"""
import subprocess, sys
inner = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
engine = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE)
engine.stdout.readline()
open({str(pid)!r}, "w").write(str(engine.pid))
{SERVER}"""
    with start(code) as child:
        child.wait_until_ready()
        number = int(pid.read_text())
    assert until(lambda: gone(number))


def gone(number: int) -> bool:
    status = Path(f"/proc/{number}/status")
    return not status.exists() or "\nState:\tZ" in status.read_text()


def until(true: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def test_it_ends_where_its_starter_is_killed(tmp_path: Path) -> None:
    """Also one that does not listen to SIGTERM, which vLLM does not while it loads a model."""
    pid = tmp_path / "pid"
    code = (
        f"import os, signal, time; signal.signal(15, signal.SIG_IGN); open({str(pid)!r}, 'w').write(str(os.getpid()))"
    )
    program = [sys.executable, "-c", f"{code}; time.sleep(600)"]
    keep = [sys.executable, "-c", SHORT, *program]
    starter = f"import subprocess, time; subprocess.Popen({keep!r}, stdin=subprocess.PIPE, start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", f"{starter}; time.sleep(600)"])
    assert until(lambda: pid.exists() and pid.read_text())
    process.kill()
    process.wait()
    assert until(lambda: gone(int(pid.read_text())))
