"""Teachers: from names, folders and files to frozen callables on the student's batch; class maps."""

import argparse
import hashlib
import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2

from tests.parts import assert_refused, data_config, random_images, refusal, small_model
from w2s_plugins.files import file_sha256
from w2s_plugins.losses import create_loss
from w2s_plugins.models.fingerprint import hash_tensors
from w2s_plugins.settings.teacher_name import parse_teachers
from w2s_plugins.target_kind import ONE_CLASS, UNMAPPED_LOGIT
from w2s_plugins.teachers.mix import nearest_teacher
from w2s_plugins.teachers.teacher import (
    StudentInput,
    Teacher,
    TeacherModel,
    TeacherSettings,
    open_teacher,
)
from w2s_plugins.training.task import WeakToStrongTask

CPU = torch.device("cpu")
PIXELS = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
STUDENT = StudentInput(mean=(0.48, 0.45, 0.41), std=(0.23, 0.22, 0.21), in_chans=3, num_classes=10)


def normalise(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


def member(model, student=STUDENT, config=None, **kwargs) -> TeacherModel:
    return TeacherModel(
        model, {**resolve_data_config(model=model), **(config or {})}, student, **kwargs
    )


@pytest.fixture
def weights(tmp_path):
    """A w2s_cnn5 with its own batch norm statistics, and the file of its state dict."""
    model = small_model(3, "w2s_cnn5")
    model(random_images())  # moves the statistics off their defaults
    torch.save(model.eval().state_dict(), tmp_path / "weak.pth")
    return model, tmp_path / "weak.pth"


def create(name="w2s_cnn5", *files, **kwargs) -> Teacher:
    student = kwargs.pop("student", STUDENT)
    return open_teacher(
        parse_teachers(name), [str(f) for f in files], student, CPU, TeacherSettings(**kwargs)
    )


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    "mean, std, size",
    [
        ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), (32, 32)),
        (STUDENT.mean, STUDENT.std, (32, 32)),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (48, 40)),
    ],
)
def test_teacher_sees_the_pixels_under_its_own_normalisation_and_size(mean, std, size):
    model = small_model(1, "w2s_cnn5").eval()
    teacher = member(model, config={"mean": mean, "std": std, "input_size": (3, *size)})
    images = normalise(PIXELS, STUDENT.mean, STUDENT.std)
    expected = F.interpolate(normalise(PIXELS, mean, std), size, mode="bicubic", antialias=True)
    torch.testing.assert_close(teacher.adapt(images), expected, rtol=0, atol=1e-5)
    if mean == STUDENT.mean:
        assert torch.equal(teacher.adapt(images), images)  # nothing to do, nothing done
    torch.testing.assert_close(
        Teacher([teacher])(images), model(expected).detach(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_other_dtype(dtype, tolerance):
    reference = Teacher([member(small_model(1, "w2s_cnn5"))])(PIXELS)
    teacher = Teacher([member(small_model(1, "w2s_cnn5"), dtype=dtype)])
    assert {p.dtype for p in teacher.parameters()} == {dtype}
    logits = teacher(PIXELS)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, reference)
    torch.testing.assert_close(
        logits, reference, rtol=0, atol=tolerance * reference.abs().max().item()
    )
    assert torch.equal(
        teacher(PIXELS.bfloat16().float()),
        Teacher([member(small_model(1, "w2s_cnn5"), dtype=dtype)])(PIXELS.bfloat16().float()),
    )


def test_compiled():
    graphs = []

    def backend(graph, inputs):  # needs no C++ compiler
        graphs.append(graph)
        return graph

    options = dict(backend=backend)
    plain, compiled = (
        Teacher([member(small_model(1, "w2s_cnn5"), compile_options=o)]) for o in (None, options)
    )
    expected = plain(PIXELS)
    assert not graphs
    torch.testing.assert_close(compiled(PIXELS), expected, rtol=0, atol=1e-5)
    assert len(graphs) == 1 and compiled.members[0].run._orig_mod is compiled.members[0].fast
    for teacher in (plain, compiled):
        teacher.choose_stages(None)
    torch.testing.assert_close(
        compiled.with_features(PIXELS), plain.with_features(PIXELS), rtol=0, atol=1e-5
    )
    assert len(graphs) == 2


@pytest.mark.parametrize("stages", [[0], [1, 2], None])
def test_features_are_of_the_levels_that_are_chosen(stages):
    model = small_model(1, "w2s_cnn5").eval()
    teacher = Teacher([member(model)])
    teacher.choose_stages(stages)
    _, (*maps, _) = teacher.with_features(PIXELS)
    with torch.no_grad():
        _, levels = model.forward_intermediates(teacher.members[0].adapt(PIXELS))
    expected = levels[-4:] if stages is None else [levels[stage] for stage in stages]
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)
    assert teacher.feature_shapes[:-1] == tuple(level.shape[1:] for level in expected)


def test_ensemble_is_the_log_of_the_mean_of_probabilities():
    teachers = [member(small_model(seed, "w2s_cnn5")) for seed in (1, 2, 3)]
    logits = Teacher(teachers)(PIXELS)
    mean = torch.stack([Teacher([t])(PIXELS).softmax(1) for t in teachers]).mean(0)
    torch.testing.assert_close(logits, mean.log(), rtol=0, atol=1e-5)
    assert torch.equal(
        Teacher(teachers[:1])(PIXELS), teachers[0](teachers[0].adapt(PIXELS)).detach()
    )
    extreme = [torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])]
    torch.testing.assert_close(ONE_CLASS.average(extreme).softmax(1), torch.tensor([[0.5, 0.5]]))


def test_each_sample_gets_the_teacher_with_the_smallest_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    teachers, student = (
        3 * torch.randn(*shape, generator=generator) for shape in ((3, 8, 5), (8, 5))
    )
    found, figures = nearest_teacher(teachers, student)
    divergences = [
        F.kl_div(student.log_softmax(1), logits.softmax(1), reduction="none").sum(1)
        for logits in teachers
    ]
    nearest = torch.stack(divergences).argmin(0)
    assert len(set(nearest.tolist())) > 1 and torch.equal(found, teachers[nearest, torch.arange(8)])
    shares = [figures[f"teacher{m}_share"] for m in range(3)]
    assert shares == [(nearest == m).float().mean() for m in range(3)]


# ---------------------------------------------------------------- frozen


def test_training_leaves_the_teacher_as_it_is():
    """Eval mode, parameters and batch norm statistics are the same, bit for bit, after steps of the whole task."""
    model = timm.create_model("cifar_wrn_16_1", num_classes=10, drop_rate=0.5)
    teacher = Teacher([member(model), member(small_model(2, "w2s_cnn5"))])
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    assert any("running_mean" in name for name in before)
    student = small_model(0, "w2s_cnn5")
    task = WeakToStrongTask(student, teacher, create_loss("adaptconf"), verbose=False)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.1)
    trained = [
        *task.get_clip_parameters(),
        *(p for group in optimizer.param_groups for p in group["params"]),
    ]
    assert not set(map(id, trained)) & set(map(id, teacher.parameters()))
    first = teacher(PIXELS)
    for _ in range(3):
        task.train()
        assert not any(m.training for m in teacher.modules())
        optimizer.zero_grad()
        task(PIXELS, torch.arange(6))["loss"].backward()
        optimizer.step()
    task.eval().train().to(torch.float32)
    teacher.members[0].train()  # alone, too
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    after = teacher.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert torch.equal(teacher(PIXELS), first)
    # it is in no checkpoint either
    task.setup_ema()
    plain, averaged = (task.get_checkpoint_state(ema=ema) for ema in (False, True))
    own = student.state_dict().keys()
    assert plain["state_dict"].keys() == averaged["state_dict_ema"].keys() == own
    assert "task_state" not in plain and "task_state" not in averaged


# ---------------------------------------------------------------- class maps


def test_map_classes_sums_probabilities():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 5
    class_map = torch.tensor([2, 0, 2, -1, 0])
    mapped = ONE_CLASS.map_classes(logits, class_map, 4)
    p = logits.softmax(1)
    kept = torch.stack(
        [p[:, 1] + p[:, 4], torch.zeros(4), p[:, 0] + p[:, 2], torch.zeros(4)], dim=1
    )
    torch.testing.assert_close(mapped.softmax(1), kept / kept.sum(1, keepdim=True))
    assert (mapped[:, [1, 3]] == UNMAPPED_LOGIT).all()
    assert (
        mapped.isfinite().all()
        and ONE_CLASS.map_classes(logits * 1e4, class_map, 4).isfinite().all()
    )
    permutation = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(
        ONE_CLASS.map_classes(logits, permutation, 5)[:, permutation], logits
    )


def test_other_class_count(weights):
    assert_refused(
        r"w2s_cnn5: it has 10 classes, the student 2; give weights",
        create,
        "w2s_cnn5",
        weights[1],
        student=StudentInput(STUDENT.mean, STUDENT.std, 3, num_classes=2),
    )


# ---------------------------------------------------------------- where weights come from


FORMS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s},
    "DDP of compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_checkpoints(tmp_path, weights, form, caplog):
    caplog.set_level(logging.INFO)
    model, _ = weights
    file = tmp_path / "teacher.pth.tar"
    torch.save(FORMS[form](model.state_dict()), file)
    teacher = create("w2s_cnn5", file)
    own = teacher.members[0]
    assert own.fingerprint["sha256"] == hash_tensors(model.state_dict())
    assert own.source == {
        "name": "w2s_cnn5",
        "params": sum(p.numel() for p in model.parameters()),
        "source": {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
    }
    assert teacher.sources == [own.source]
    assert f"{len(model.state_dict())} matched" in caplog.text


def test_run_folder_says_how_its_input_is_made(tmp_path, weights):
    """Of a run folder the arguments are read as well: size, normalisation, classes, constructor arguments."""
    model = small_model(0, "w2s_cnn5", num_classes=7)
    args = argparse.Namespace(
        model="w2s_cnn5",
        img_size=24,
        input_size=None,
        in_chans=None,
        mean=[0.5],
        std=[0.5],
        interpolation="",
        crop_pct=None,
        num_classes=7,
        model_kwargs={"drop_rate": 0.25},
    )
    torch.save(
        {"state_dict": model.state_dict(), "args": args, "epoch": 0}, tmp_path / "last.pth.tar"
    )
    student = StudentInput(STUDENT.mean, STUDENT.std, 3, num_classes=7)
    own = create("w2s_cnn5", tmp_path, student=student).members[0]
    assert own.source["source"]["file"] == str(tmp_path / "last.pth.tar")
    assert own.data_config["input_size"][-2:] == (24, 24)
    assert tuple(own.data_config["mean"]) == (0.5, 0.5, 0.5)
    assert own.fast.drop_rate == 0.25
    assert own.adapt(PIXELS).shape[-2:] == (24, 24)


@pytest.mark.parametrize(
    "name, files", [("w2s_cnn5", [""]), ("local-dir:{}/export", [])], ids=["run", "export"]
)
def test_export_folder(tmp_path, weights, name, files):
    model, _ = weights
    config = data_config(24, mean=(0.5, 0.4, 0.3))
    export = tmp_path / "export"
    save_for_hf(model, export, safe_serialization=True, data_config=config)
    (own,) = create(name.format(tmp_path), *(tmp_path / file for file in files)).members
    file = export / "model.safetensors"
    assert own.source["source"] == {"file": str(file), "sha256": file_sha256(file)}
    assert own.size == (24, 24)
    assert tuple(own.data_config["mean"]) == (0.5, 0.4, 0.3)
    assert own.fingerprint["sha256"] == hash_tensors(model.state_dict())


def test_size_given_by_hand(weights):
    teacher = create("w2s_cnn5", weights[1], img_size=48)
    assert teacher.members[0].size == (48, 48)
    vit = timm.create_model("test_vit", num_classes=10, img_size=32)
    torch.save(vit.state_dict(), weights[1].with_name("vit.pth"))
    teacher = create("test_vit", weights[1].with_name("vit.pth"), img_size=32)
    assert teacher(PIXELS).shape == (6, 10)


def test_other_number_of_channels(tmp_path):
    model = timm.create_model("w2s_cnn5", in_chans=1)
    torch.save(
        {"state_dict": model.state_dict(), "args": argparse.Namespace(in_chans=1)},
        tmp_path / "grey.pth",
    )
    assert "1 input channel" in refusal(create, "w2s_cnn5", tmp_path / "grey.pth")


def test_no_pretrained_weights_in_timm():
    assert "timm has no pretrained weights" in refusal(create, "w2s_cnn5")
    assert "not the config.json of a timm model" in refusal(create, "local-dir:/absent")


# ---------------------------------------------------------------- checkpoints of other trainers


def test_checkpoints_of_torchvision(tmp_path):
    import torchvision

    torch.manual_seed(0)
    published = torchvision.models.resnet18(num_classes=10).eval()
    state, images = published.state_dict(), random_images(4)
    torch.save(state, tmp_path / "resnet18.pth")
    (found,) = create("resnet18", tmp_path / "resnet18.pth", img_size=32).members
    torch.testing.assert_close(found(images), published(images).detach(), rtol=0, atol=1e-4)
