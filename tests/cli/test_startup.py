"""The parser answers before torch and all that needs it is imported: ``--help``, wrong flags, types and files."""

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from timm.data.dataset_factory import _TORCH_BASIC_DS

from tests.e2e.conftest import ROOT, Done, environment
from tests.parts import lines
from w2s_plugins import __version__
from w2s_plugins.errors import put_off_import
from w2s_plugins.settings.forms import TORCH_NAMES

HEAVY = ("torch", "torchvision", "timm", "numpy", "pandas", "sklearn", "PIL", "pyarrow")


@pytest.fixture
def light_env(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """Environment in which nothing heavy can be imported."""
    for name in getattr(request, "param", HEAVY):
        (tmp_path / "heavy" / name).mkdir(parents=True)
        (tmp_path / "heavy" / name / "__init__.py").write_text(
            f"raise RuntimeError('{name} was imported')"
        )
    return environment(PYTHONPATH=str(tmp_path / "heavy"))


@pytest.fixture
def light(tmp_path: Path, light_env: dict[str, str]) -> Callable[..., Done]:
    """Runs a script there."""

    def run(
        *flags: object, script: str = "train_w2s.py", env: dict[str, str] | None = None
    ) -> Done:
        done = subprocess.run(
            [sys.executable, script if script == "-m" else str(ROOT / script), *map(str, flags)],
            cwd=tmp_path,
            env={**light_env, **(env or {})},
            capture_output=True,
            text=True,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.parametrize("script", ["train_w2s.py", "validate.py"])
def test_help(light, script):
    assert light("--version", script=script).ok().out == f"w2s-plugins {__version__}\n"
    done = light("--help", script=script).ok()
    assert (
        done.out.startswith(f"usage: {script}")
        and "--teacher-checkpoint" in done.out
        and done.err == ""
    )
    if script == "train_w2s.py":
        assert "--rkd-eps" in light("--help-all").ok().out


SAID = {
    "study --help": "usage: python -m w2s_plugins.study",
    "study --version": f"w2s-plugins {__version__}\n",
    "demo --version": f"w2s-plugins {__version__}\n",
    "predictions --version": f"w2s-plugins {__version__}\n",
    "study plna x.yaml": "COMMAND: unknown choice 'plna' (nearest: plan",
    "study run x.yaml --jbos 2": "run: unknown flag '--jbos' (nearest: --jobs",
    "study run x.yaml --jobs 0": "run: --jobs 0: expected at least 1",
    "hub --help": "usage: python -m w2s_plugins.hub",
    "hub push no me/x --pivate": "push: unknown flag '--pivate' (nearest: --private",
    "hub push w2s_plugin me/x": "RUN: unknown model 'w2s_plugin' (nearest: w2s_plugins",
    "hub push RUN x": "not a Hub id: 'x'",
    "hub push RUN": "the following arguments are required: ORG/NAME",
    "labels push x.csv": "the following arguments are required: ORG/NAME",
    "hub push RUN/args.yaml me/x": "RUN: unknown model ",
    "hub push RUN me/x": "push to me/x: needs a token: run `hf auth login` or set HF_TOKEN",
    "predictions m . --output x.csv --topk 2": "unknown flag '--topk' (nearest: --top-k",
    "predictions m . --output x.csv --all --top-k 2": "--top-k: not allowed with",
    "predictions m . --output x.xls": "--output x.xls: of an unknown kind",
    "predictions m w2s_plugin": "w2s_plugin: no such folder, image or tar file (nearest: w2s_plugins",
    "labels chekc": "COMMAND: unknown choice 'chekc' (nearest: check",
}


@pytest.mark.parametrize("words", SAID)
def test_commands_of_the_package(light_env, tmp_path, words):
    (tmp_path / "args.yaml").touch()
    module, *argv = words.replace("RUN", str(tmp_path)).split()
    done = subprocess.run(
        [sys.executable, "-m", f"w2s_plugins.{module}", *argv],
        cwd=ROOT,
        env=light_env | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    if argv[0] in ("--help", "--version"):
        assert done.returncode == 0 and done.stdout.startswith(SAID[words]) and done.stderr == ""
    else:
        assert done.returncode == 2 and done.stderr.startswith(
            f"w2s_plugins.{module}: error: {SAID[words]}"
        )
        assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epohcs", 1], "unknown flag '--epohcs' (nearest: --epochs"),
        (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["--weak-config", "x.yaml"], "--weak-config x.yaml has no effect without --protocol w2s"),
        (["--config", "wrong.yaml"], "--config wrong.yaml: epochs: 'many' is a str, expected int"),
    ],
)
def test_wrong_flags(light, tmp_path, flags, message):
    (tmp_path / "wrong.yaml").write_text("epochs: many")
    done = light(*flags)
    assert done.error.startswith(message)
    assert done.err.count("\n") == 1 and done.out == ""


TABLES = r"""
--unlabeled data --teacher labels:no.csv  ->  --teacher labels:no.csv: no such file \(nearest: .*t.csv
--unlabeled data --teacher labels:t.csv  ->  --teacher labels:t.csv: row 4: 'catt' is no class; .*, or list all classes by
--unlabeled data --teacher labels:t.csv#lable --class-names cat,hen  ->  has no column 'lable'
--unlabeled data --teacher labels:t.csv?missing=skip --class-names cat,hen  ->  torch was imported
--unlabeled data --teacher labels:t.csv --class-names cat,hen  ->  'catt' is no class; .*\(nearest: cat\)
--data-dir data --task-loss-weight 0 --teacher labels:t.csv  ->  torch was imported
--data-dir data --task-loss-weight 0 --teacher labels:note.csv  ->  no column says which sample a row is about
--data-dir data --task-loss-weight 0 --teacher labels:x.tar  ->  labels:x.tar: of an unknown kind
--data-dir data --task multilabel --train-labels t.csv  ->  --train-labels t.csv: row 4: 'catt' is no class
--data-dir data --task multilabel --train-labels in.csv  ->  --train-labels in.csv: no such file \(nearest: data/in.csv\)
--data-dir data --val-labels note.csv  ->  --val-labels note.csv: no column says which sample
--data-dir data --val-labels t.csv  ->  torch was imported
validate.py --data-dir data --model x --val-labels no.csv  ->  --val-labels no.csv: no such file \(nearest: .*t.csv
labels check no.csv  ->  no.csv: no such file \(nearest: .*t.csv
labels check t.csv  ->  t.csv: row 4: 'catt' is no class; .*, or list all classes by
labels stats t.csv note.csv  ->  note.csv: no column says which sample a row is about
labels check wide.csv  ->  torch was imported
"""


@pytest.mark.parametrize("light_env", [("torch", "torchvision", "timm", "sklearn")], indirect=True)
@pytest.mark.parametrize("words, message", lines(TABLES))
def test_wrong_tables(light, tmp_path, words, message):
    """Before torch is imported, too; what class folders or people's columns decide is left to those who know them."""
    (tmp_path / "data").mkdir()
    for name in ("t.csv", "data/in.csv"):
        rows = "".join(f"{i},{label}\n" for i, label in enumerate(["cat"] * 3 + ["catt"]))
        (tmp_path / name).write_text(f"filename,label\n{rows}")
    (tmp_path / "note.csv").write_text("note,label\na,cat\n")
    (tmp_path / "wide.csv").write_text("image,anna,bob\na,cat,dog\nb,dog,cat\n")
    (tmp_path / "x.tar").touch()
    script, *flags = words.split() if words[0] != "-" else ("train_w2s.py", *words.split())
    if script == "labels":
        script = "-m"
        flags = ["w2s_plugins.labels", *flags]
    done = light(*flags, script=script)
    assert re.search(message, done.err.splitlines()[-1])
    assert done.code == (1 if message.startswith("torch") else 2)


def test_right_flags_go_on_to_the_imports(light):
    """What the others show is not that nothing is ever imported."""
    done = light("--dataset", "w2s/digits", "--epochs", 1)
    assert done.code == 1 and done.err.endswith("RuntimeError: torch was imported\n")


@pytest.mark.parametrize("light_env", [["wandb"]], indirect=True)
def test_what_timm_imports_and_no_command_needs_waits_for_its_use(light):
    """Its import takes a second, and would fail here."""
    assert "adaptconf" in light("--list-losses").ok().out


def test_a_put_off_package_is_imported_by_its_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "__init__.py").write_text("VALUE = 7")
    (tmp_path / "late" / "part.py").write_text("VALUE = 8")
    monkeypatch.syspath_prepend(tmp_path)
    put_off_import("late")
    put_off_import("no_such_package")
    assert "no_such_package" not in sys.modules
    later = importlib.import_module("late")
    assert not hasattr(later, "__file__") and sys.modules["late"] is later
    assert importlib.util.find_spec("late") is later.__spec__ and sys.modules["late"] is later
    assert later.VALUE == 7 and sys.modules["late"] is not later
    for name in ("late", "late.part"):
        sys.modules.pop(name, None)
    put_off_import("late")
    assert importlib.import_module("late.part").VALUE == 8
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        print(later.other)
    for name in ("late", "late.part"):
        del sys.modules[name]


def test_names_that_the_parser_knows_are_those_of_timm():
    assert {f"torch/{name}" for name in _TORCH_BASIC_DS} < set(TORCH_NAMES)
