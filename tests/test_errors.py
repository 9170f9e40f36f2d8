"""Errors for the person who typed the command: one line, exit code 2, once for all ranks."""

import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from w2s_plugins.errors import UserError, nearest, one_line, quietly, run_main, typed
from w2s_plugins.monitor import setup_logging

SCRIPT = """
import sys
from w2s_plugins.errors import UserError, run_main
def main():
    if "--fine" in sys.argv:
        print("fine")
    elif "--pipe" in sys.argv:
        raise BrokenPipeError
    elif "--name" in sys.argv:
        print("gr\\xf6\\xdfe")
    elif "--memory" in sys.argv:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (10 ** 9, 10 ** 9))
        bytearray(2 * 10 ** 9)
    elif "--denied" in sys.argv:
        raise PermissionError(13, "Permission denied", "out/weak")
    elif "--bug" in sys.argv:
        raise KeyError("a bug")
    else:
        raise UserError("--flag x: unknown (nearest: y)")
run_main(main, "prog.py")
"""


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *flags],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_user_error_is_one_line_and_exit_code_2():
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "prog.py: error: --flag x: unknown (nearest: y)\n",
    )


def test_commands_are_named_as_they_are_typed(monkeypatch):
    assert [typed(name) for name in ("train", "hub")] == [
        "python train_w2s.py",
        "python -m w2s_plugins.hub",
    ]
    monkeypatch.setattr(sys, "argv", ["w2s-study", "run"])
    assert [typed(name) for name in ("train", "hub")] == ["w2s-train", "w2s-hub"]


def test_debug_shows_the_traceback():
    done = run("--debug")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("prog.py: error: --flag x: unknown (nearest: y)\n")


def test_other_outcomes():
    assert run("--fine").stdout == "fine\n"
    assert (run("--pipe").returncode, run("--pipe").stderr) == (1, "")
    bug = run("--bug")
    assert bug.returncode == 1 and "KeyError: 'a bug'" in bug.stderr


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--memory", "prog.py: error: out of memory: MemoryError\n"),
        ("--denied", "prog.py: error: out/weak: Permission denied\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(flag: str, said: str):
    done = run(flag)
    assert (done.returncode, done.stderr) == (2, said)


LONG_VALUES = {
    "a path": "a/" * 3000,
    "a name": "n" * 300,
    "a list": ",".join(f"name{number}" for number in range(81)),
}
TAKES_PATHS = [
    "train_w2s --model w2s_cnn2 --data-dir",
    "train_w2s --dataset w2s/digits --device cpu --workers 0 --model w2s_cnn2 --initial-checkpoint",
    "validate --dataset w2s/digits --device cpu --checkpoint",
    "w2s_plugins.predictions.__main__ w2s_cnn2 . --output p.csv --checkpoint",
    "w2s_plugins.labels.__main__ check t.csv --data-dir",
    "w2s_plugins.labels.__main__ check",
    "w2s_plugins.labels.__main__ audit",
    "w2s_plugins.hub.__main__ card",
    "w2s_plugins.study.__main__ status",
]


@pytest.mark.parametrize("kind", LONG_VALUES)
@pytest.mark.parametrize("typed_before", TAKES_PATHS)
def test_what_is_longer_than_any_path_is_one_line(
    typed_before: str, kind: str, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python asks the system about it, which refuses to look."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("filename,label\n0.png,cat\n")
    Image.new("RGB", (8, 8)).save("0.png")
    module, *words = typed_before.split()
    code, _, errors = command(
        importlib.import_module(module).main, module, *words, LONG_VALUES[kind]
    )
    told = [line for line in errors.splitlines() if ": error: " in line]
    assert (code, len(told), "Traceback" in errors) == (2, 1, False), errors[:2000]


def test_output_that_is_full_or_ascii():
    command = [sys.executable, "-c", SCRIPT]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=full).returncode == 2
        done = subprocess.run([*command, "--fine"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "prog.py: error: the output: No space left on device\n",
    )
    done = run("--name", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "gr\\xf6\\xdfe\n")


def test_other_ranks_of_a_node_leave_time_to_the_first():
    """Where that one has failed as well, torchrun ends them before they repeat it."""
    started = time.monotonic()
    done = run(LOCAL_RANK="1", WORLD_SIZE="2")
    assert (done.returncode, "unknown (nearest: y)" in done.stderr) == (2, True)
    assert time.monotonic() - started > 1


@pytest.mark.parametrize(
    "name, choices, hint",
    [
        ("resnt18", ["resnet18", "vit"], " (nearest: resnet18)"),
        ("ADAPTCONF", ["adaptconf", "kd"], " (nearest: adaptconf)"),
        ("adaptconf", ["AdaptConf"], " (nearest: AdaptConf)"),
        ("zzz", ["adaptconf"], ""),
        ("a", [], ""),
        (18, [17, 18], " (nearest: 18, 17)"),
    ],
)
def test_nearest(name, choices, hint):
    assert nearest(name, choices) == hint


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(max_size=100), st.integers(10, 400))
def test_one_line(text, limit):
    line = one_line(ValueError(text), limit)
    assert len(line) <= max(limit, len("ValueError"))
    assert len(line.splitlines()) == 1
    if text.split() and len(" ".join(text.split())) <= limit:
        assert line == " ".join(text.split())


def test_a_log_that_is_left_out_comes_back_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyError), quietly():
        with quietly(logging.INFO):
            logging.warning("inside")
        logging.warning("a plan within a plan")
        raise KeyError
    logging.info("afterwards")
    with quietly(logging.INFO):
        logging.info("chatter")
        logging.warning("a warning")
    assert caplog.messages == ["afterwards", "a warning"]


TOKEN = "hf_" + "T0psecret" * 4


@pytest.mark.parametrize("flags", [[], ["--debug"]])
@pytest.mark.parametrize("error", [UserError, OSError])
def test_no_token_of_other_packages_is_shown(monkeypatch, capsys, flags, error):
    """A reader of a dataset, say, that repeats what a server has answered: message, cause, warning."""
    monkeypatch.setenv("HF_TOKEN", "a token of no usual form")
    monkeypatch.setattr(sys, "argv", ["prog.py", *flags])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)

    def main():
        setup_logging(primary=True)
        logging.getLogger("datasets").warning("401 for Bearer %s \n", TOKEN)
        try:
            raise ValueError(f"401 for {TOKEN}")
        except ValueError as cause:
            raise error(f"--dataset hfds/x: {cause}, a token of no usual form") from cause

    with pytest.raises(SystemExit) as ended:
        run_main(main, "prog.py")
    out, err = capsys.readouterr()
    assert ended.value.code == (2 if error is UserError else 1)
    assert "T0psecret" not in out + err and "no usual form" not in out + err
    assert "401 for Bearer hf_***\n" in err and "--dataset hfds/x: 401 for hf_***, ***" in err
    assert ("Traceback" in err) == (error is OSError or bool(flags))
