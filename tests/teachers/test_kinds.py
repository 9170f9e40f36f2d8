"""Teachers of transformers, open_clip and onnxruntime, and functions of plugins: opened, asked, refused."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.parts import Armed, assert_refused, change_json, lines, refusal, write_folder
from tests.teacher_models import (
    CLIP,
    CLIP_CONFIG,
    NAMES,
    make_clip,
    make_hf,
    make_onnx,
    register_clip,
    small_network,
)
from w2s_plugins.data import create_dataset
from w2s_plugins.distributed.world import World
from w2s_plugins.files import file_sha256
from w2s_plugins.labels.store import Part
from w2s_plugins.registry import load_plugins
from w2s_plugins.resolve.train import check_teacher_name
from w2s_plugins.settings.forms import teacher_names
from w2s_plugins.settings.teacher_name import TeacherName, parse_teachers
from w2s_plugins.target_kind import SEVERAL_CLASSES
from w2s_plugins.teachers.clip import read_prompts
from w2s_plugins.teachers.hf import TransformersClassifier, crop_share, input_of_processor
from w2s_plugins.teachers.openers import PROMPTS
from w2s_plugins.teachers.stored import Pass, label_images
from w2s_plugins.teachers.teacher import (
    StudentInput,
    TeacherModel,
    TeacherSettings,
    open_member,
    pair_checkpoints,
)

CPU = torch.device("cpu")
SORTED = sorted(NAMES)
pytestmark = pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one teacher of each kind, and images that are not square."""
    folder = tmp_path_factory.mktemp("kinds")
    make_hf(folder / "vit")
    make_clip(folder)
    make_onnx(folder / "net.onnx", class_names=SORTED, mean=[0.5] * 3, std=[0.25] * 3)
    write_folder(folder / "data", {"train": 6})
    return folder


@pytest.fixture(autouse=True)
def there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def student(names: list[str] | None = SORTED, **more: object) -> StudentInput:
    return StudentInput((0.5,) * 3, (0.5,) * 3, 3, len(names) if names else 3, names, **more)


def opened(name: str, names: list[str] | None = SORTED, **settings: object) -> TeacherModel:
    return open_member(
        TeacherName.parse(name), None, student(names), CPU, TeacherSettings(**settings)
    )


def answers(member: TeacherModel) -> Tensor:
    """What is said of the images in the folder, through the loaders of cached targets."""
    dataset = create_dataset("", "data", "train")
    (found,) = label_images(
        member,
        member.data_config,
        dataset,
        Pass(World(CPU, 0, 1, False), 4, decoder="pil"),
        [Part(0, 0, len(dataset))],
    )
    return found.values


def images() -> list[Image.Image]:
    dataset = create_dataset("", "data", "train")
    return [Image.open(dataset.reader.samples[i][0]).convert("RGB") for i in range(len(dataset))]


# ---------------------------------------------------------------- what a package says itself


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {
            "size": {"shortest_edge": 21},
            "do_center_crop": True,
            "crop_size": {"height": 16, "width": 16},
            "resample": 3,
        },
        {
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.3, 0.4],
            "rescale_factor": 1 / 128,
            "resample": 0,
        },
    ],
)
def test_transformers_says_the_same_of_an_image(processor: dict, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = make_hf(tmp_path / "vit", **processor)
    # with Pillow, as our loaders resize; the torchvision backend rounds pixels otherwise
    own, model = (
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        (AutoModelForImageClassification.from_pretrained(folder).eval()),
    )
    if "shortest_edge" in processor.get("size", {}):
        own.crop_size, own.do_center_crop = {"height": 16, "width": 16}, True
    with torch.inference_mode():
        expected = model(**own(images(), return_tensors="pt")).logits
    torch.testing.assert_close(
        answers(opened(f"hf:{folder}", list(NAMES))), expected, rtol=0, atol=1e-4
    )


def test_what_identifies_a_network_of_transformers() -> None:
    """Its settings count as well as its weights, and what differs between versions or dtypes does not."""
    from transformers import ViTConfig, ViTForImageClassification

    size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)

    def identity(**changes: object) -> str:
        config = ViTConfig(image_size=16, patch_size=8, num_labels=3, **size, **changes)
        return TransformersClassifier(ViTForImageClassification(config)).cache_identity()

    assert identity() == identity()
    assert identity() != identity(hidden_act="relu")
    assert identity() != identity(layer_norm_eps=1e-3)


def test_features_of_two_heads_are_those_of_both() -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = DeiTConfig(image_size=16, patch_size=8, num_labels=3, **size)
    network = DeiTForImageClassificationWithTeacher(config).eval()
    model, images = TransformersClassifier(network), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        tokens = network.deit(pixel_values=images).last_hidden_state
        features = model.embed(images)
    torch.testing.assert_close(features, torch.cat([tokens[:, 0], tokens[:, 1]], dim=1))


@pytest.mark.parametrize("text", [None, "{}|a drawing of a {}"])
def test_open_clip_says_the_same_of_an_image(text: str | None) -> None:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(
        CLIP, pretrained="clip.safetensors"
    )
    names = ["a cat", *SORTED[1:]]
    classifier = open_clip.build_zero_shot_classifier(
        model.eval(),
        open_clip.get_tokenizer(CLIP),
        names,
        PROMPTS if text is None else text.split("|"),
    )
    with torch.inference_mode():
        seen = model.encode_image(
            torch.stack([preprocess(image) for image in images()]), normalize=True
        )
        expected = model.logit_scale.exp() * seen @ classifier
    found = answers(
        opened(f"clip:{CLIP}/clip.safetensors", ["a_cat", *names[1:]], prompts=read_prompts(text))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std(dim=1).min() > 1e-3


@pytest.mark.parametrize("bias", [None, -3.0])
def test_open_clip_is_asked_about_each_class(bias: float | None, tmp_path: Path) -> None:
    """Of several classes an image: SigLIP by its own bias, CLIP beside the same text with 'something' in it."""
    import open_clip
    from safetensors.torch import save_file

    name = CLIP
    if bias is not None:
        name = f"{CLIP}-sigmoid"
        (tmp_path / f"{name}.json").write_text(json.dumps({**CLIP_CONFIG, "init_logit_bias": bias}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    member = open_member(
        TeacherName.parse(f"clip:{name}/{tmp_path / 'weights.safetensors'}"),
        None,
        student(target_kind=SEVERAL_CLASSES),
        CPU,
        TeacherSettings(prompts=("a photo of a {}.",)),
    )
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)(
            [f"a photo of a {text}." for text in (*SORTED, "something")]
        )
        texts = model.eval().encode_text(tokens, normalize=True)
        seen = model.encode_image(
            torch.stack([preprocess(image) for image in images()]), normalize=True
        )
        logits = model.logit_scale.exp() * seen @ texts.T
    others = logits[:, 3:] if bias is None else -bias
    torch.testing.assert_close(answers(member), logits[:, :3] - others, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("probabilities", [False, True])
def test_onnxruntime_says_the_same_of_an_image(
    batch: int | None, probabilities: bool, tmp_path: Path
) -> None:
    file = make_onnx(
        tmp_path / "net.onnx",
        batch=batch,
        probabilities=probabilities,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    pixels = (
        np.stack([np.asarray(image.resize((19, 16), 3)) for image in images()])[:, :, 2:18] / 255
    )
    batch_of_all = torch.from_numpy((pixels - 0.5) / 0.25).permute(0, 3, 1, 2).float()
    expected = small_network()(batch_of_all).detach()
    found = answers(opened(f"onnx:{file}"))
    # all at once as well: a network of a fixed batch is asked in parts, whose answers stay in their order
    for answered in (found, opened(f"onnx:{file}")(batch_of_all)):
        torch.testing.assert_close(
            answered.softmax(dim=1), expected.softmax(dim=1), rtol=0, atol=1e-4
        )
    if not probabilities:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_size_of_a_network_that_takes_any(tmp_path: Path) -> None:
    file = make_onnx(tmp_path / "free.onnx", free=True)
    assert [opened(f"onnx:{file}", img_size=size).size for size in (None, 20)] == [
        (224, 224),
        (20, 20),
    ]


@pytest.mark.parametrize("size, resized", [(1, 93), (224, 255), (224, 256), (384, 439), (16, 21)])
def test_timm_crops_from_the_size_that_is_meant(size: int, resized: int) -> None:
    assert int(size / crop_share(size, resized)) == resized


def test_input_of_a_processor() -> None:
    small = input_of_processor(
        {
            "size": {"shortest_edge": 224},
            "crop_pct": 0.875,
            "image_mean": [0] * 3,
            "image_std": [1] * 3,
            "resample": 3,
        }
    )
    assert (small["input_size"], small["crop_pct"], small["crop_mode"]) == (
        (3, 224, 224),
        0.875,
        "center",
    )
    # from -1 to 1 before they are normalised
    whole = input_of_processor(
        {"size": {"shortest_edge": 96}, "image_mean": [0] * 3, "image_std": [1] * 3}
    )
    assert (whole["input_size"], whole["crop_pct"], whole["crop_mode"]) == (
        (3, 96, 96),
        1.0,
        "center",
    )
    shifted = input_of_processor(
        {
            "rescale_factor": 1 / 127.5,
            "rescale_offset": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
    )
    assert (shifted["mean"], shifted["std"]) == ((0.75,) * 3, (0.25,) * 3)


# ---------------------------------------------------------------- classes


def test_classes_are_matched_by_name(caplog) -> None:
    caplog.set_level("INFO")
    plain, mapped = answers(opened("hf:vit", list(NAMES))), answers(opened("hf:vit"))
    assert torch.equal(mapped, plain[:, [1, 2, 0]])
    assert (
        "in another order (class 0 is 'class2' there, 'class0' here); its logits are matched by name"
        in caplog.text
    )


def test_names_that_say_nothing_are_left_aside(tmp_path: Path, caplog) -> None:
    make_hf(tmp_path / "numbered", ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert opened(f"hf:{tmp_path}/numbered").class_map is None
    make_hf(tmp_path / "double", ["a", "b", "c"])
    change_json(tmp_path / "double/config.json", id2label={"2": "a"})
    assert opened(f"hf:{tmp_path}/double").class_map is None
    (warning,) = (
        r.message for r in caplog.records if r.levelno >= logging.WARNING
    )  # the level may be that of a run
    assert "two of its classes have the same name; its classes are taken by position" in warning


# ---------------------------------------------------------------- plugins


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], str]:
    """Imports a plugin with this text, and returns the name of its module."""

    def write(text: str) -> str:
        file = tmp_path / f"{tmp_path.name}.py"
        file.write_text(
            "import torch\nfrom w2s_plugins.teachers import Opened, register_teacher\n" + text
        )
        load_plugins([str(file)])
        return file.stem

    return write


def test_a_function_sees_pixels_from_0_to_1(plugin) -> None:
    module = plugin(
        "def ask(images):\n    assert images.min() >= 0 and images.max() <= 1\n"
        "    return images.mean(dim=(2, 3)).softmax(dim=1).tolist()\n"
        "def small(images):\n    return ask(images)\nsmall.input_size = 6\n"
    )
    check_teacher_name("--teacher", TeacherName.parse(f"{module}:ask"))
    member = open_member(TeacherName.parse(f"{module}:ask"), None, student(size=(12, 10)), CPU)
    small = open_member(TeacherName.parse(f"{module}:small"), None, student(), CPU)
    assert member.size == (12, 10) and small.size == (6, 6)
    assert opened(f"{module}:small", img_size=7).size == (7, 7)
    pixels = torch.rand(4, 3, 12, 10)
    found = member(member.adapt((pixels - 0.5) / 0.5))
    torch.testing.assert_close(found.softmax(dim=1), pixels.mean(dim=(2, 3)).softmax(dim=1))


@pytest.mark.parametrize(
    "text, said",
    [
        ("return images.mean(dim=(2, 3))[:, :2]", r"answered \(1, 2\), expected \(1, 3\)"),
        ("return images.mean(dim=(2, 3)) / 0", "not finite"),
        ("raise OSError('no answer')", "OSError: no answer"),
        (
            "return torch.full((len(images), 3), 1 / 3 if len(images) == 1 else 0.7)",
            "now rows do not sum to one",
        ),
    ],
)
def test_a_function_that_answers_otherwise(plugin, text: str, said: str) -> None:
    module = plugin(f"def ask(images):\n    {text}\n")
    refused = TeacherName.parse(f"{module}:ask"), None, student(size=(8, 8)), CPU
    assert_refused(said, lambda: open_member(*refused)(torch.zeros(2, 3, 8, 8)))
    assert_refused(
        r"has no function 'aks' \(nearest: ask\)",
        open_member,
        TeacherName.parse(f"{module}:aks"),
        None,
        student(),
        CPU,
    )


def test_a_kind_of_ones_own(plugin) -> None:
    plugin("""
@register_teacher("own")
def open_own(name, request):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    model.num_classes, model.cache_identity = 3, lambda: name
    config = dict(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0,
                  crop_mode="center")
    return Opened(model, config, ["class1", "class0", "class2"], {"file": name})
""")
    member = opened("own:mine")
    assert member.class_map.tolist() == [1, 0, 2] and member.source["source"] == {"file": "mine"}
    assert member.fingerprint["plugin"] == "mine"
    assert_refused(
        r"unknown kind of teacher 'onw' \(nearest: own",
        check_teacher_name,
        "--teacher",
        TeacherName.parse("onw:mine"),
    )


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize(
    "name, file", [("onnx:net.onnx", "net.onnx"), ("hf:vit", "vit/model.safetensors")]
)
def test_the_recorded_hash_of_one_file_is_that_of_sha256sum(name: str, file: str) -> None:
    assert opened(name).source["source"]["sha256"] == file_sha256(file)


def test_what_identifies_a_teacher(tmp_path: Path) -> None:
    make_hf(tmp_path / "vit", seed=1)
    shutil.copytree("vit", tmp_path / "renamed")
    make_onnx(tmp_path / "net.onnx", seed=1)
    shutil.copy("net.onnx", tmp_path / "same.onnx")
    clip = f"clip:{CLIP}/clip.safetensors"
    own = {name: opened(name).fingerprint for name in ("hf:vit", clip, "onnx:net.onnx")}
    assert opened(f"hf:{tmp_path / 'renamed'}").fingerprint == own["hf:vit"]
    assert opened(clip).fingerprint == own[clip]
    assert opened(f"onnx:{tmp_path / 'same.onnx'}").fingerprint == own["onnx:net.onnx"]
    others = [
        opened(f"hf:{tmp_path / 'vit'}"),
        opened(clip, prompts=("{}",)),
        opened(clip, ["a", "b", "c"]),
        opened(f"onnx:{tmp_path / 'net.onnx'}"),
    ]
    found = [
        json.dumps(identity)
        for identity in (*own.values(), *(member.fingerprint for member in others))
    ]
    assert len(set(found)) == len(found)


def test_weights_of_onnx_in_a_file_of_any_name(tmp_path: Path) -> None:
    """Another file of weights is another teacher, whose stored answers are not those of the one before."""
    import onnx

    found = []
    for seed in (0, 1):
        network = onnx.load(make_onnx(tmp_path / f"{seed}.onnx", class_names=SORTED, seed=seed))
        onnx.save_model(
            network,
            tmp_path / "net.onnx",
            save_as_external_data=True,
            location="weights",
            size_threshold=0,
        )
        found.append(
            (
                opened(f"onnx:{tmp_path / 'net.onnx'}").fingerprint,
                (tmp_path / "net.onnx").read_bytes(),
            )
        )
        (tmp_path / "weights").unlink()
    assert found[0][1] == found[1][1] and found[0][0] != found[1][0]


# ---------------------------------------------------------------- names, prompts, checkpoints


@pytest.mark.parametrize(
    "name, kind, rest, of_timm, labels",
    [
        ("resnet18.a1", "", "resnet18.a1", True, False),
        ("hf-hub:o/n@v", "hf-hub", "o/n@v", True, False),
        ("local-dir:a:b", "local-dir", "a:b", True, False),
        ("labels:x.csv", "labels", "x.csv", False, True),
        ("clip:a/b", "clip", "a/b", False, False),
        ("mine:f", "mine", "f", False, False),
    ],
)
def test_names_are_parsed(name: str, kind: str, rest: str, of_timm: bool, labels: bool) -> None:
    _, found = parse_teachers(f"resnet18, {name}")
    assert (found.kind, found.rest) == (kind, rest)
    assert (found.is_of_timm, found.is_labels) == (of_timm, labels)
    assert found.is_architecture == (name == "resnet18.a1")


def test_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(
        "\ufeffa {}.\r\n\r\n  the {}, again {}\n", encoding="utf-8"
    )
    assert read_prompts(str(tmp_path / "prompts.txt")) == ("a {}.", "the {}, again {}")
    assert read_prompts("a {}| the {} ") == ("a {}", "the {}") and read_prompts(None) == PROMPTS


@pytest.mark.parametrize(
    "text, said",
    [
        ("a photo", "no such file of templates"),
        ("a {}|b", "in each template"),
        ("data", "no such"),
    ],
)
def test_no_prompts(text: str, said: str) -> None:
    assert_refused(said, read_prompts, text)


def test_a_path_to_a_run_is_its_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weak/export").mkdir(parents=True)
    (tmp_path / "weak/export/config.json").write_text("{}")
    run = str(tmp_path / "weak")
    assert teacher_names(f"resnet18, {run},hf:{run}") == f"resnet18,local-dir:{run}/export,hf:{run}"
    assert teacher_names(f"{run}/export/") == f"local-dir:{run}/export"
    # a file of a run too: the weights of its export, or a checkpoint
    for name in ("args.yaml", "last.pth.tar", "export/model.safetensors", "../other.pth.tar"):
        (tmp_path / "weak" / name).touch()
    assert teacher_names(
        f"{run}/export/model.safetensors,{run}/last.pth.tar,{tmp_path}/other.pth.tar"
    ) == (f"local-dir:{run}/export,checkpoint:{run}/last.pth.tar,{tmp_path}/other.pth.tar")
    assert teacher_names(str(tmp_path)) == str(tmp_path)
    assert_refused(
        "the folder has no export",
        check_teacher_name,
        "--teacher",
        TeacherName.parse(str(tmp_path)),
    )
    monkeypatch.chdir(tmp_path)
    assert_refused(
        r"\(nearest: ./weak\)", check_teacher_name, "--teacher", TeacherName.parse("weak")
    )


def test_checkpoints_are_of_the_names_that_need_one() -> None:
    def pairs(names: str, checkpoints: list[str]) -> list[tuple[str, str | None]]:
        return [
            (str(name), file) for name, file in pair_checkpoints(parse_teachers(names), checkpoints)
        ]

    assert pairs("hf:vit,a,local-dir:x,b", ["1", "2"]) == [
        ("hf:vit", None),
        ("a", "1"),
        ("local-dir:x", None),
        ("b", "2"),
    ]
    assert pairs("local-dir:x,b", ["1", "2"]) == [("local-dir:x", "1"), ("b", "2")]
    assert_refused("hf:vit says itself where its weights are", pairs, "hf:vit", ["1"])
    assert_refused(
        "names 2 models but --teacher-checkpoint 3 files", pairs, "hf:vit,a", ["1", "2", "3"]
    )


@pytest.mark.parametrize(
    "kind, module, pip",
    [
        ("hf:vit", "transformers", "transformers"),
        ("clip:a/b", "open_clip", "open_clip_torch"),
        ("onnx:net.onnx", "onnxruntime", "onnxruntime"),
    ],
)
def test_a_package_that_is_absent(
    kind: str, module: str, pip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(f"^--teacher {kind}: needs a package: pip install {pip}$", opened, kind)


# ---------------------------------------------------------------- refused


def write_bad(folder: Path) -> None:
    """Teachers that cannot be opened, or must not be."""
    (folder / "text.onnx").write_text("no network")
    (folder / "empty").mkdir()
    torch.save({"a": Armed(folder / "executed")}, folder / "weights.pt")
    for name, changes in (
        ("code", {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "mine"}),
        ("kernel", {"attn_implementation": "someone/kernel"}),
        ("wrapper", {"model_type": "timm_wrapper"}),
    ):
        make_hf(folder / name)
        change_json(folder / name / "config.json", **changes)
        (folder / name / "code.py").write_text(
            f"open({str(folder / 'executed')!r}, 'w')\nclass Config: pass\n"
        )
    make_hf(folder / "processor")
    change_json(
        folder / "processor/preprocessor_config.json",
        image_processor_type="Mine",
        auto_map={"AutoImageProcessor": "code.Config"},
    )
    shutil.copy(folder / "code/code.py", folder / "processor")
    make_hf(folder / "pickled")
    (folder / "pickled/model.safetensors").unlink()
    torch.save({"a": Armed(folder / "executed")}, folder / "pickled/pytorch_model.bin")
    make_hf(folder / "headless")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "headless/model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "classifier" not in k},
        folder / "headless/model.safetensors",
        metadata={"format": "pt"},
    )
    make_onnx(folder / "metadata.onnx", mean="no list")
    make_onnx(folder / "std.onnx", std=[1, 0, 1])
    make_onnx(folder / "crop_mode.onnx", crop_mode="middle")


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_bad(folder)
    return folder


BAD = rf"""
hg:vit  ->  unknown kind of teacher 'hg' \(nearest: hf
hf:  ->  expected a name behind the colon
hf:a/b/c  ->  not a Hub id
hf:empty  ->  cannot be opened
hf:code  ->  cannot be opened
hf:processor  ->  cannot be opened
hf:kernel  ->  names code or another model: attn_implementation: 'someone/kernel'
hf:wrapper  ->  a wrapped model of timm, which names another one; hf-hub: opens such
hf:pickled  ->  cannot be opened.*safetensors
hf:headless  ->  not those of an image classifier: 2 of .* \(classifier.bias, classifier.weight\)
clip:w2s-test-clop/x  ->  open_clip has no model 'w2s-test-clop' \(nearest: w2s-test-clip
clip:ViT-B-32/opanai  ->  ViT-B-32 has no weights 'opanai' \(nearest: openai
clip:{CLIP}/weights.pt  ->  has no weights 'weights.pt'; expected a .safetensors
clip:{CLIP}/none.safetensors  ->  has no weights 'none.safetensors'; expected a .safetensors file that is there
onnx:none.onnx  ->  no such file
onnx:text.onnx  ->  cannot be opened
onnx:metadata.onnx  ->  its metadata: mean: None is a NoneType, expected a list
onnx:std.onnx  ->  its metadata: std: .*, expected a number above 0
onnx:crop_mode.onnx  ->  its metadata: crop_mode: .middle. is a str, expected one of center, squash, border
"""


@pytest.mark.parametrize("name, said", lines(BAD))
def test_bad_names_and_files(
    name: str, said: str, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bad)
    register_clip(bad)
    found = refusal(
        lambda: (check_teacher_name("--teacher", TeacherName.parse(name)), opened(name))
    )
    assert found.startswith(f"--teacher {name}") and re.search(said, found)
    assert not list(bad.rglob("executed"))


@pytest.mark.parametrize(
    "names, said",
    [(None, "needs the names of the classes"), (["a", "b", "a"], "each of them once")],
)
def test_a_zero_shot_classifier_needs_names(names: list | None, said: str) -> None:
    assert_refused(said, opened, f"clip:{CLIP}/clip.safetensors", names)


@pytest.mark.parametrize(
    "names, said",
    [(None, "it has 3 classes, the student 4"), (list("abcd"), "none of its 3 classes")],
)
def test_another_number_of_classes(names: list[str] | None, said: str) -> None:
    name, of_four = TeacherName.parse("hf:vit"), StudentInput((0.5,) * 3, (0.5,) * 3, 3, 4, names)
    assert_refused(f"--teacher hf:vit: {said}", open_member, name, None, of_four, CPU)


def test_another_number_of_names() -> None:
    make_onnx(Path("two.onnx"), class_names=["a", "b"])
    assert_refused("its metadata class_names has 2 values, expected 3", opened, "onnx:two.onnx")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model_kwargs": {"a": 1}}, "--teacher-kwargs are arguments of timm's constructors"),
        ({"img_size": 20}, "the model takes no images of 3 x 20 x 20"),
    ],
)
def test_flags_that_a_kind_has_no_use_for(settings: dict, message: str) -> None:
    assert_refused(message, opened, "hf:vit", **settings)
