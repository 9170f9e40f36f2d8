"""The scripts answer what the command line alone decides before torch and all that needs it is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from timm.data.dataset_factory import _EVAL_SYNONYM, _TORCH_BASIC_DS, _TRAIN_SYNONYM
from timm.models._registry import _deprecated_models
from timm.optim import list_optimizers

import w2s_plugins.models  # noqa: F401  (registers the small networks)
from tests.e2e.conftest import ROOT, Done, environment
from w2s_plugins.cli.forms import CORRUPTIONS, TORCH_NAMES
from w2s_plugins.cli.kwargs import loss_parameters
from w2s_plugins.cli.names import refuse_unknown_kind, refuse_unknown_model, refuse_unknown_optimizer
from w2s_plugins.data.corruptions import KINDS
from w2s_plugins.errors import UserError
from w2s_plugins.losses import list_losses
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.protocols.planning import SYNONYMS
from w2s_plugins.teachers.kinds import TEACHERS

DIGITS = ("--dataset", "w2s/digits")
TAUGHT = (*DIGITS, "--model", "w2s_cnn2", "--teacher", "w2s_cnn2")
SEVERAL = (*DIGITS, "--model", "w2s_cnn2", "--experiment", "x")
HEAVY = ("torch", "torchvision", "timm", "numpy", "sklearn", "PIL")


@pytest.fixture
def light_env(tmp_path: Path) -> dict[str, str]:
    """Environment in which nothing heavy can be imported."""
    for name in HEAVY:
        (tmp_path / "heavy" / name).mkdir(parents=True)
        (tmp_path / "heavy" / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    return environment(PYTHONPATH=str(tmp_path / "heavy"))


@pytest.fixture
def light(tmp_path: Path, light_env: dict[str, str]) -> Callable[..., Done]:
    """Runs a script there."""
    def run(*flags: object, script: str = "train_w2s.py", env: dict[str, str] | None = None) -> Done:
        done = subprocess.run([sys.executable, str(ROOT / script), *map(str, flags)], cwd=tmp_path,
                              env={**light_env, **(env or {})}, capture_output=True, text=True)
        return Done(done.returncode, done.stdout, done.stderr)
    return run


@pytest.mark.parametrize("script", ["train_w2s.py", "validate.py"])
def test_help(light, script):
    done = light("--help", script=script).ok()
    assert done.out.startswith(f"usage: {script}") and "--teacher-checkpoint" in done.out and done.err == ""


@pytest.mark.parametrize("module, words, message", [
    ("study", ["--help"], "usage: python -m w2s_plugins.study"),
    ("study", ["plan", "--help"], "usage: python -m w2s_plugins.study plan"),
    ("study", ["plna", "x.yaml"], "COMMAND: unknown choice 'plna' (nearest: plan"),
    ("study", ["run", "x.yaml", "--jbos", "2"], "run: unknown argument '--jbos' (nearest: --jobs"),
    ("study", ["run", "x.yaml", "--jobs", "0"], "--jobs: expected at least 1, found 0"),
    ("study", ["status", "no"], "no: no folder of a study"),
    ("hub", ["--help"], "usage: python -m w2s_plugins.hub"),
    ("hub", ["push", "--help"], "usage: python -m w2s_plugins.hub push"),
    ("hub", ["push", "no", "me/x", "--pivate"], "unrecognized arguments: --pivate"),
    ("hub", ["push", "no", "me/x"], "no run folder no"),
])
def test_commands_of_the_package(light_env, module, words, message):
    done = subprocess.run([sys.executable, "-m", f"w2s_plugins.{module}", *words], cwd=ROOT, env=light_env,
                          capture_output=True, text=True)
    if "--help" in words:
        assert done.returncode == 0 and done.stdout.startswith(message) and done.stderr == ""
    else:
        assert done.returncode == 2 and done.stderr.startswith(f"w2s_plugins.{module}: error: {message}")
        assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("base, loss, message", [
    ("epohcs: 1", "kd", "s.yaml: base: unknown key 'epohcs' (nearest: epochs"),
    ("mixup: 0.2, batch_size: 3", "kd", "s: weak w2s_cnn2: mixup and cutmix pair samples: --batch-size 3 must be"),
    ("epochs: 1, corruptions: [foo:3]", "kd", "s: ceiling w2s_cnn5: --corruptions foo:3: unknown kind 'foo'"),
    ("epochs: 1, device: cudaa", "kd", "s: weak w2s_cnn2: --device cudaa: unknown device (nearest: cuda"),
    ("epochs: 1, val_sets: [a=none]", "kd", "s: ceiling w2s_cnn5: --val-sets a=none: no such folder"),
    ("epochs: 1", "kdd", "s: student w2s_cnn2 w2s_cnn5 kdd w2s: --loss: unknown loss 'kdd' (nearest: "),
    ("epochs: 1", "{name: kd, kwargs: {temprature: 1}}",
     "s: student w2s_cnn2 w2s_cnn5 kd w2s: loss 'kd' has no kwarg 'temprature' (nearest: temperature"),
])
def test_studies(light_env, tmp_path, base, loss, message):
    (tmp_path / "s.yaml").write_text(
        f"base: {{dataset: w2s/digits, {base}}}\nweak: [flags: {{model: w2s_cnn2}}]\n"
        f"strong: [flags: {{model: w2s_cnn5}}]\nlosses: [hard, {loss}]")
    done = subprocess.run([sys.executable, "-m", "w2s_plugins.study", "plan", "s.yaml"], cwd=tmp_path, text=True,
                          env={**light_env, "PYTHONPATH": f"{light_env['PYTHONPATH']}:{ROOT}"}, capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith(f"w2s_plugins.study: error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("flags, message", [
    (["--epohcs", 1], "unknown flag '--epohcs' (nearest: --epochs"),
    (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
    (["--epochs", 0], "--epochs 0: expected at least 1"),
    (["--sched", "cosin"], "--sched: unknown choice 'cosin' (nearest: cosine"),
    (["--weak-config", "x.yaml"], "--weak-config x.yaml has no effect without --protocol w2s"),
    (["--config", "none.yaml"], "--config none.yaml: no such file"),
    (["--config", "wrong.yaml"], "--config wrong.yaml: epochs: 'many' is a str, expected int"),
    (["--config", "unknown.yaml"], "--config unknown.yaml: unknown key 'epohcs' (nearest: epochs"),
    (["--config", "broken.yaml"], "--config broken.yaml: not a YAML file"),
    (["--unlabeled", "photo", "--teacher", "labels:given.csv", "--model", "w2s_cnn2"],
     "--unlabeled photo: no such folder or tar file (nearest: photos)"),
    (["--unlabeled", "photos", "--teacher", "labels:give.csv", "--model", "w2s_cnn2"],
     "--teacher labels:give.csv: no such file (nearest: given.csv)"),
    (["--data-dir", "photo"], "--data-dir photo: no such folder (nearest: photos)"),
    ([*DIGITS, "--val-sets", "a=photo"], "--val-sets a=photo: no such folder (nearest: photos)"),
    ([*DIGITS, "--model", "w2s_cnn2", "--experiment", "done"], "the run folder output/train/done exists already"),
])
def test_wrong_flags(light, tmp_path, flags, message):
    (tmp_path / "photos").mkdir()
    (tmp_path / "given.csv").touch()
    (tmp_path / "output/train/done").mkdir(parents=True)
    (tmp_path / "output/train/done/last.pth.tar").touch()
    for name, text in (("wrong", "epochs: many"), ("unknown", "epohcs: 1"), ("broken", "epochs: [")):
        (tmp_path / f"{name}.yaml").write_text(text)
    done = light(*flags)
    assert done.error.startswith(message)
    assert done.err.count("\n") == 1 and done.out == ""


def test_one_of_several_processes_tells_it(light, tmp_path):
    """As under torchrun, which itself needs torch."""
    of_a_node = dict(WORLD_SIZE="2", MASTER_PORT="1", TMPDIR=str(tmp_path))
    done = [light("--epohcs", 1, env={**of_a_node, "RANK": rank}) for rank in "01"]
    assert [d.code for d in done] == [2, 2]
    assert done[0].error.startswith("unknown flag '--epohcs'") and done[1].err == ""


@pytest.mark.parametrize("flags, message", [
    ([], "no data: give --data-dir FOLDER"),
    (["--dataset", "w2s/digit"], "--dataset: unknown dataset 'w2s/digit' (nearest: w2s/digits"),
    ([*DIGITS, "--loss", "kd"], "--loss kd needs a teacher"),
    ([*DIGITS, "--loss", "kdd"], "--loss: unknown loss 'kdd' (nearest: kd"),
    ([*DIGITS, "--teacher", "resnet18", "--task-loss", "cee"], "--task-loss: unknown choice 'cee' (nearest: ce"),
    ([*DIGITS, "--linear-probe", "--mixup", "0.2"], "--linear-probe sees every image once"),
    ([*DIGITS, "--episodic", "5"], "--episodic 5: expected WAYSxSHOTS"),
    ([*DIGITS, "--clean-select", "knn:0"], "--clean-select knn:0: expected knn:K"),
    ([*DIGITS, "--label-noise", "symetric:0.2"], "--label-noise symetric:0.2: unknown kind"),
    ([*DIGITS, "--data-errors", "skip"], "--data-errors skip: expected raise, or skip:N"),
    ([*DIGITS, "--tune", "heads"], "--tune heads: expected one of all, head"),
    ([*DIGITS, "--amp", "--model-dtype", "bfloat16"], "--amp keeps the weights in float32"),
    ([*DIGITS, "--select", "best", "--val-split", ""], "--select best needs a --val-split"),
    ([*DIGITS, "--fsdp", "--channels-last"], "--fsdp keeps weights in rows"),
    ([*DIGITS, "--resume", "auto", "--resume-changes", "epohcs"], "--resume-changes epohcs: no such flag (nearest: ep"),
    ([*DIGITS, "--device", "cudaa"], "--device cudaa: unknown device (nearest: cuda"),
    ([*DIGITS, "--device", "cuda:x"], "--device cuda:x: unknown device (nearest: cuda"),
    ([*DIGITS, "--device", "meta"], "--device meta: unknown device"),
    ([*DIGITS, "--corruptions", "contrats:3"], "--corruptions contrats:3: unknown kind 'contrats' (nearest: contrast"),
    ([*DIGITS, "--corruptions", "contrast:6"], "--corruptions contrast:6: expected contrast:N with a severity of 1 to"),
    ([*DIGITS, "--val-sets", "x"], "--val-sets x: expected NAME=PATH"),
    ([*DIGITS, "--select", "best", "--select-split", "1.5"], "--select-split 1.5: expected a share between 0 and 1, "),
    ([*DIGITS, "--select", "best", "--select-split", "0"], "--select-split 0: expected a share between 0 and 1, or a"),
    ([*TAUGHT, "--loss", "balanced_elr", "--num-classes", "10", "--loss-kwargs", "shares=[0.5,0.5]"],
     "loss 'balanced_elr': shares has 2 numbers, expected one for each of the 10 classes"),
    ([*TAUGHT, "--loss", "kd+balanced_elr", "--num-classes", "10", "--loss-kwargs", "balanced_elr.shares=[0.5,0.5]"],
     "loss 'balanced_elr': shares has 2 numbers, expected one for each of the 10 classes"),
    (["--unlabeled", ".", "--teacher", "w2s_cnn2", "--teacher-until-passed", "2"],
     "--teacher-until-passed goes on with ground truth, which --unlabeled leaves out unless a --task-loss-weight is"),
    ([*DIGITS, "--config", "clash.yaml"], "mixup and cutmix pair samples: --batch-size 3 must be even"),
    ([*TAUGHT, "--loss", "kd", "--loss-kwargs", "temprature=1"], "loss 'kd' has no kwarg 'temprature' (nearest: temp"),
    ([*TAUGHT, "--loss", "kd", "--loss-kwargs", "temperature=hot"], "loss 'kd': temperature='hot' is a str, expected"),
    ([*TAUGHT, "--loss", "kd+rkd", "--loss-kwargs", "rkd.weight=-"], "loss 'kd+rkd': rkd.weight='-' is a str"),
    ([*SEVERAL, "--protocol", "w2s"], "--protocol w2s needs a --teacher NAME"),
    ([*SEVERAL, "--protocol", "w2s", "--teacher", "w2s_cnn2", "--loss", "kdd"], "--loss: unknown loss 'kdd' (nearest:"),
    ([*SEVERAL, "--protocol", "w2s", "--teacher", "w2s_cnn2", "--val-split", "training"],
     "--protocol w2s would test on what it trains on: --val-split training is --train-split train"),
    ([*SEVERAL, "--protocol", "w2s", "--teacher", "w2s_cnn2", "--weak-config", "clash.yaml"],
     "--weak-config clash.yaml: mixup and cutmix pair samples: --batch-size 3 must be even"),
    ([*SEVERAL, "--protocol", "w2s", "--teacher", "w2s_cnn2", "--controls", "direct", "--direct-sizes", "0"],
     "--direct-sizes 0: expected a share of the labelled part such as 0.5"),
    ([*SEVERAL, "--protocol", "w2s", "--teacher", "w2s_cnn2", "--controls", "direct", "--weak-fraction", "0"],
     "--controls direct: --weak-fraction 0 leaves no labelled part to train on"),
    ([*SEVERAL, "--protocol", "w2s", "--teacher", "w2s_cnn2", "--weak-config", "folds.yaml"],
     "--weak-config folds.yaml: folds asks for several runs, and the teacher's is one: leave it out of the file"),
    ([*SEVERAL, "--folds", "4", "--train-slice", "0:3"], "--folds 4: --train-slice 0:3 has 3 samples"),
    ([*SEVERAL, "--folds", "4", "--mixup", "0.2", "--linear-probe"], "--linear-probe sees every image once"),
    ([*SEVERAL, "--stages", "key.yaml"], "--stages key.yaml: b: unknown key 'modle' (nearest: model"),
    ([*SEVERAL, "--stages", "many.yaml"], "--stages many.yaml: b: folds is about several runs, and a stage is one"),
    ([*SEVERAL, "--stages", "kind.yaml", "--teacher", "w2s_cnn2"],
     "--stages kind.yaml: b: --teacher stag:a: unknown kind of teacher 'stag' (nearest: stage"),
    ([*SEVERAL, "--stages", "sets.yaml"], "--stages sets.yaml: b: --val-sets a=none: no such folder"),
    ([*SEVERAL, "--stages", "noise.yaml"], "--stages noise.yaml: b: --corruptions foo:3: unknown kind 'foo'"),
    ([*SEVERAL, "--stages", "flags.yaml"], "--stages flags.yaml: b: --linear-probe sees every image once"),
    ([*SEVERAL, "--stages", "product.yml"], "--stages product.yml: no such file (nearest: product.yaml"),
    ([*SEVERAL, "--stages", "hparams/w2s_labelled.yml"],
     "--stages hparams/w2s_labelled.yml: no such file; as it comes with the package: w2s:w2s_labelled"),
    ([*SEVERAL, "--stages", "product.yaml"], "--stages product.yaml: b: initial_checkpoint: stage:c: no stage of this"),
    ([*SEVERAL, "--stages", "w2s:w2s_labelled", "--teacher", "w2s_cnn2", "--config", "loss.yaml"],
     "--stages w2s:w2s_labelled: direct: the stage has no teacher, and --loss elr is for all stages: stages have their "
     "own settings, leave --loss, or the --config with it, out"),
])
def test_flags_that_clash(light, tmp_path, flags, message):
    stages = dict(key="modle: x", flags="linear_probe: true, mixup: 0.2", many="folds: 3", sets="val_sets: [a=none]",
                  kind='teacher: "given,stag:a"', noise='corruptions: ["foo:3"]',
                  product='initial_checkpoint: "stage:c"')
    for name, second in stages.items():
        (tmp_path / f"{name}.yaml").write_text(f"- name: a\n- {{name: b, {second}}}")
    (tmp_path / "loss.yaml").write_text("loss: elr")
    (tmp_path / "folds.yaml").write_text("folds: 3")
    (tmp_path / "clash.yaml").write_text("batch-size: 3\nmixup: 0.2\nmodel: w2s_cnn2")
    done = light(*flags)
    assert done.error.startswith(message)
    assert done.err.count("\n") == 1 and done.out == ""


@pytest.mark.parametrize("flags, message", [
    ([], "no data: give --data-dir FOLDER"),
    (["--dataset", "w2s/digit"], "--dataset: unknown dataset 'w2s/digit' (nearest: w2s/digits"),
    ([*DIGITS, "--checkpoint", "bset.pth.tar"], "--checkpoint bset.pth.tar: no such file or folder (nearest: best"),
    ([*DIGITS, "--amp", "--model-dtype", "bfloat16"], "--amp keeps the weights in float32"),
    (["--data-dir", "none"], "--data-dir none: no such folder"),
    ([*DIGITS, "--device", "cudaa"], "--device cudaa: unknown device (nearest: cuda"),
    ([*DIGITS, "--corruptions", "foo:3"], "--corruptions foo:3: unknown kind 'foo'; one of"),
    ([*DIGITS, "--val-sets", "x=none"], "--val-sets x=none: no such folder"),
    ([*DIGITS, "--few-shot", "5"], "--few-shot 5: expected WAYSxSHOTS"),
    ([*DIGITS, "--few-shot", "5x1", "--teacher", "a,b"], "--few-shot: several teachers have no common features"),
    ([*DIGITS, "--few-shot", "5x1", "--corruptions", "contrast:1"], "--few-shot cannot be combined with"),
])
def test_validation(light, tmp_path, flags, message):
    (tmp_path / "best.pth.tar").touch()
    done = light(*flags, script="validate.py")
    assert done.code == 2 and done.err.startswith(f"validate.py: error: {message}"), done.err
    assert done.err.count("\n") == 1 and done.out == ""


@pytest.mark.parametrize("flags, message", [
    (["--model", "resnet1"], "--model: unknown model 'resnet1' (nearest: resnet1"),
    (["--teacher", "w2s_cn5"], "--teacher: unknown model 'w2s_cn5' (nearest: w2s_cnn5"),
    (["--teacher", "label:ans.csv"], "--teacher label:ans.csv: unknown kind of teacher 'label' (nearest: labels"),
    (["--teacher", "resnet18,resnet_18"], "--teacher: unknown model 'resnet_18' (nearest: res"),
    (["--protocol", "w2s", "--experiment", "x", "--teacher", "resnet18", "--model", "resnet1"],
     "--model: unknown model 'resnet1' (nearest: resnet1"),
    (["--opt", "adamx"], "--opt: unknown optimizer 'adamx' (nearest: adamax"),
    (["--experiment", "x", "--stages", "opt.yaml"], "--stages opt.yaml: b: --opt: unknown optimizer 'adamx' (nearest:"),
])
def test_unknown_names(tmp_path, flags, message):
    """Their names are looked for in timm's files, of which none is imported."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    (tmp_path / "opt.yaml").write_text("- name: a\n- {name: b, opt: adamx}")
    for script in ("train_w2s.py", *(["validate.py"] if flags[0] in ("--model", "--teacher") else [])):
        done = subprocess.run([sys.executable, str(ROOT / script), *DIGITS, *flags], capture_output=True, text=True,
                              cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)))
        assert done.returncode == 2 and done.stderr.startswith(f"{script}: error: {message}"), done.stderr


def test_names_in_the_sources_are_those_of_the_registries():
    own = {name: LOSSES.get(name) for name in list_losses()}
    assert loss_parameters() == {name: entry.defaults for name, entry in own.items()
                                 if entry.factory.__module__.startswith("w2s_plugins.")}
    for name in (*timm.list_models(), *_deprecated_models):
        refuse_unknown_model("--model", name)
    for name in (*list_optimizers(), "lookahead_AdamW"):
        refuse_unknown_optimizer(name)
    assert {f"torch/{name}" for name in _TORCH_BASIC_DS} < set(TORCH_NAMES)
    assert [*KINDS] == [*CORRUPTIONS]
    for kind in TEACHERS.names():
        if TEACHERS.get(kind).__module__.startswith("w2s_plugins."):
            refuse_unknown_kind("--teacher", f"{kind}:x")
    assert [set(names) for names in SYNONYMS] == [set(_TRAIN_SYNONYM), set(_EVAL_SYNONYM)]
    with pytest.raises(UserError) as error:
        refuse_unknown_model("--model", "cifar_resnet21")
    nearest = str(error.value).partition("(nearest: ")[2].rstrip(")").split(", ")
    assert nearest and all(map(timm.is_model, nearest))


def test_a_plugin_may_know_a_name(light):
    done = light(*DIGITS, "--teacher", "resnet18", "--plugins", "mine.py", "--loss", "mine")
    assert done.code == 1 and done.err.endswith("RuntimeError: torch was imported\n")


@pytest.mark.parametrize("flags", [
    [*DIGITS, "--epochs", 1, "--tune", "head"],
    [*SEVERAL, "--stages", "truth.yaml", "--loss", "bce"],
    [*SEVERAL, "--stages", "truth.yaml", "--distiller", "vanilla"],
])
def test_right_flags_go_on_to_the_imports(light, tmp_path, flags):
    """What the others show is not that nothing is ever imported; what is said of them, is said after that."""
    (tmp_path / "truth.yaml").write_text("[{name: a, teacher: ''}]")
    done = light(*flags)
    assert "WARNING" not in done.err
    assert done.code == 1 and done.err.endswith("RuntimeError: torch was imported\n")
