"""Processes that are fresh but for what takes longest to import: a start takes a quarter of the time."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# What nothing of the environment changes, as huggingface_hub's settings do: the rest is imported anew by each. And
# pytest, the main module of the tests, which multiprocessing imports in every process.
FORKS.set_forkserver_preload(
    [
        "PIL.Image",
        "filelock",
        "httpx2",
        "jinja2",
        "pytest",
        "safetensors.torch",
        "torch",
        "torch._dynamo",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "torch.export",
        "torchvision",
        "torchvision.datasets",
        "torchvision.models.feature_extraction",
        "torchvision.transforms.v2",
        "trio",
        "wandb",
        "yaml",
    ]
)


def become(argv: Sequence[str], env: Mapping[str, str], cwd: Path, files: Sequence[Path]) -> None:
    """Run a program in this process, as Python does it."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR), number)
    # what was there before knows other files: whether they can be sought in, or are a terminal
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    kind, *more = sys.argv = [*argv]
    place = {"-c": "", "-m": str(cwd)}.get(kind, os.path.dirname(kind))
    sys.path[:0] = [place, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if kind == "-c":
            sys.argv[1:2] = []
            exec(more[0], {"__name__": "__main__"})
        elif kind == "-m":
            sys.argv[:1] = []
            runpy.run_module(more[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(kind, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def python(
    *argv: object, env: Mapping[str, str], cwd: Path, given: str = ""
) -> subprocess.CompletedProcess:
    """Run ``python *argv``, a script, ``-m MODULE`` or ``-c CODE``, and wait for its end.

    Args:
        argv: the command line after the name of the interpreter.
        env: environment of the process. What is read before anything is imported, as OMP_NUM_THREADS, is that of the
            tests; in place of one of the packages named above it can put no other.
        cwd: its folder.
        given: its standard input.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        for file, text in zip(files, (given, "", "")):
            file.write_text(text)
        process = FORKS.Process(target=become, args=([*map(str, argv)], dict(env), cwd, files))
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            argv, process.exitcode, *(file.read_text() for file in files[1:])
        )


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing has happened"
        time.sleep(0.01)
