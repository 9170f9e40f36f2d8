"""Programs that are forks of a process with everything imported: what they are when Python starts them itself."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import python
from w2s_plugins.files import TOP
from w2s_plugins.study.pool import child_env
from w2s_plugins.study.worker import MODULES
from w2s_plugins.warm import Warm, cold

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each program is started by itself")
ABOUT = '''
import json, os, signal, sys, threading
print(json.dumps([
    sys.argv, sys.path[0], os.getcwd(), os.environ["ASKED"], os.environ.get("HOME"), sys.stdin.read(), __name__,
    sorted(map(int, os.listdir("/proc/self/fd")))[:-1], os.getsid(0) == os.getpid(), threading.active_count(),
    [signal.getsignal(s) == h for s, h in ((2, signal.default_int_handler), (15, 0), (17, 0))],
    os.system("exit 3")]))
sys.exit(int(sys.argv[1]))
'''


def ended(pid: int) -> bool:
    """True when a process is gone, or waits for somebody to notice."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_program_is_what_python_would_start(tmp_path: Path) -> None:
    script = tmp_path / "about.py"
    script.write_text(ABOUT)

    def run(start: Callable, *argv: object) -> tuple[int, str, str]:
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            told.write(b"given")
            told.seek(0)
            env = {"ASKED": "yes", "PYTHONPATH": str(TOP), "PATH": os.environ["PATH"]}
            code = start(argv, env, stdin=told, stdout=out, stderr=err, cwd=tmp_path).wait()
            return code, *(file.seek(0) or file.read().decode() for file in (out, err))

    with Warm(["fractions"], child_env({})) as warm:
        for argv in ([script, 0, "a b"], [script, 5], ["-c", ABOUT, 2], ["-m", "about", 7]):
            expected = run(cold, *argv)
            assert run(warm.start, *argv) == expected and str(expected[0]) in map(str, argv)
        for code in ("import os; os.kill(os.getpid(), 9)", "1 / 0", "raise SystemExit('told')"):
            found, expected = run(warm.start, "-c", code), run(cold, "-c", code)
            assert found[0] == expected[0] and found[2].splitlines()[-1:] == expected[2].splitlines()[-1:]


def test_programs_end_by_themselves_or_with_who_started_them(tmp_path: Path) -> None:
    """Each tells its own end; when the process that they are forks of is killed, they may save, and others go on."""
    code = ("import signal, sys, time; signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
            "print('ready', flush=True); time.sleep(60)")
    log = tmp_path / "log"
    with Warm([], child_env({})) as warm, log.open("ab") as file:
        first, second = (warm.start(["-c", code], stdout=file, stderr=file) for _ in range(2))
        wait_until(lambda: log.read_text().count("ready") == 2)
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(0.01)
        first.terminate()
        assert first.wait() == 143 and not ended(second.pid)
        warm._process.send_signal(signal.SIGTERM)  # as of a whole job, which it outlives
        warm._process.send_signal(signal.SIGINT)
        assert warm.start(["-c", "raise SystemExit(4)"], stdout=file, stderr=file).wait() == 4
        warm._process.kill()
        assert second.wait() == -signal.SIGKILL, "nobody knows"
        wait_until(lambda: log.read_text().count("saved") == 2)
        third = warm.start(["-c", "raise SystemExit(5)"], stdout=file, stderr=file)
        assert isinstance(third, subprocess.Popen) and third.wait() == 5
    with Warm(["no_such_module"], child_env({})) as warm, log.open("ab") as file:
        assert warm.start(["-c", "raise SystemExit(6)"], stdout=file, stderr=file).wait() == 6


@pytest.mark.parametrize("start", ["cold", "Warm([], os.environ).start"])
def test_a_program_ends_when_who_asked_for_it_is_killed(start: str) -> None:
    code = ("import os, time; from w2s_plugins.warm import Warm, cold; waits = ['-c', 'import time; time.sleep(60)']\n"
            f"print({start}(waits, stdout=2, stderr=2).pid, flush=True)\ntime.sleep(60)")
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=TOP, stdout=subprocess.PIPE, text=True)
    pid = int(runner.stdout.readline())
    assert not ended(pid)
    runner.kill()
    runner.communicate()
    wait_until(lambda: ended(pid))


def test_what_is_imported_for_runs_may_be_forked(tmp_path: Path) -> None:
    """It starts no thread and asks no GPU: a process whose parent has done that can use none."""
    code = f'''
import importlib, threading, torch
def asked(*args): raise AssertionError("asks for GPUs")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda.is_available = torch.cuda.device_count = asked
for name in {MODULES}: importlib.import_module(name)
print(threading.active_count(), len(__import__("os").listdir("/proc/self/task")), torch.cuda.is_initialized())
'''
    done = python("-c", code, env=child_env({"OMP_NUM_THREADS": "1"}), cwd=TOP)
    assert done.stdout == "1 1 False\n", done.stderr
