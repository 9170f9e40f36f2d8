"""Files of a run that are damaged, lost or not what they say: nothing else is taken for them in silence."""

import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import TINY, Run, assert_same_end, read_events, read_run
from tests.e2e.test_bad_input import breaking, distil
from tests.e2e.test_resume import flags_of, whole  # noqa: F401  (a fixture)
from tests.hub_server import HubServer
from tests.parts import assert_says, refusal
from w2s_plugins.errors import UserError
from w2s_plugins.files import to_json
from w2s_plugins.hub.push import push_export
from w2s_plugins.models.loading import find_weights, read_checkpoint, read_weights
from w2s_plugins.settings.teacher_name import TeacherName
from w2s_plugins.teachers.kinds import open_classifier
from w2s_plugins.teachers.openers import Request

CNN = [*TINY, "--model w2s_cnn2"]


@pytest.fixture
def finished(weak: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(weak, tmp_path / "finished"))


def tensor_bytes(path: Path) -> list[tuple[int, int]]:
    """Where the tensors of a file of weights lie: offset and length of each piece."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        first = 8 + struct.unpack("<Q", content[:8])[0]
        return [(first, len(content) - first)]
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if "/data/" in r.filename and r.file_size]
    starts = [
        r.header_offset + 30 + sum(struct.unpack_from("<HH", content, r.header_offset + 26))
        for r in records
    ]
    return [(start, record.file_size) for start, record in zip(starts, records)]


def flip_bit(path: Path, draw: random.Random) -> None:
    """Flip one bit of one tensor, under all names of a file; its tensors by their size."""
    pieces = tensor_bytes(path)
    ((start, length),) = draw.choices(pieces, [length for _, length in pieces])
    content = bytearray(path.read_bytes())
    content[start + draw.randrange(length)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


EXPORT = "export/model.safetensors"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("last.pth.tar", lambda run: read_checkpoint(run / "last.pth.tar", "--resume")),
        (
            "last.pth.tar",
            lambda run: open_classifier(
                TeacherName.parse("w2s_cnn2"), Request(checkpoint=str(run / "last.pth.tar"))
            ),
        ),
        (
            EXPORT,
            lambda run: open_classifier(
                TeacherName.parse(f"local-dir:{run / 'export'}"), Request()
            ),
        ),
        (EXPORT, lambda run: read_weights(find_weights(str(run), "x"), "--checkpoint")),
    ],
    ids=["resumed", "as teacher", "export as local-dir", "export validated"],
)
def test_one_flipped_bit_is_noticed(
    finished: Path, name: str, read: Callable[[Path], object], seed: int
) -> None:
    flip_bit(finished / name, random.Random(seed))
    with pytest.raises(UserError):
        read(finished)


def damage(path: Path, kind: str) -> None:
    """Damage a file in place, under all of its names, or take it away."""
    if kind == "lost":
        path.unlink()
        return
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        flip_bit(path, random.Random(0))


def without_damaged(folder: Path) -> list[str]:
    """Take away what a run has set aside; return its names."""
    aside = sorted(folder.glob("*.set-aside"))
    for path in aside:
        path.unlink()
    return [path.name for path in aside]


@pytest.mark.parametrize("kind", ["flipped", "truncated", "lost"])
def test_the_newest_whole_checkpoint(
    here: Run,
    weak: Path,
    whole: Callable,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    """``last`` of the second epoch is damaged, and so are the names that share its bytes; the first epoch is whole."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "parts", "--stop-epoch 2").ok()
    run = tmp_path / "parts"
    damage(run / "last.pth.tar", kind)
    done = here(*flags, "parts", "--resume auto").ok()
    if kind != "lost":
        assert (
            done.err.count("checkpoint-1.pth.tar is damaged, or further than where the run goes on")
            == 1
        )
        (said,) = [line for line in done.err.splitlines() if "passed over: " in line]
        assert_says(
            said,
            "last.pth.tar",
            "checkpoint-1.pth.tar",
            "damaged",
            "the run goes on from checkpoint-0.",
        )
        assert "goes on with epoch 2" in done.err
        assert "checkpoint-1.pth.tar.set-aside" in without_damaged(run)
    else:
        assert (
            "checkpoint-1.pth.tar: goes on with epoch 3" in done.err and without_damaged(run) == []
        )
    assert_same_end(whole("plain"), run)


@pytest.mark.parametrize("resume", ["auto", ""])
def test_a_run_whose_checkpoints_are_gone_is_not_written_over(
    here: Run, weak: Path, tmp_path: Path, resume: str
) -> None:
    flags = [*flags_of("plain", weak, tmp_path), "run"]
    run = tmp_path / "run"
    here(*flags, "--stop-epoch 1").ok()
    for path in run.glob("*.pth.tar"):
        path.unlink()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    error = here(*flags, "--resume", resume).error
    assert_says(error, "has lost its checkpoints", "give another --experiment, or delete")
    assert all(p.read_bytes() == data for p, data in before.items())


def test_ranks_agree_on_the_checkpoint(ranks: Run, here: Run, weak: Path, tmp_path: Path) -> None:
    flags = [*flags_of("plain", weak, tmp_path)[:-1], "--batch-size 8", "--experiment"]
    assert ranks(*flags, "whole", processes=2, cwd=tmp_path).codes == (0, 0)
    assert ranks(*flags, "parts", "--stop-epoch 2", processes=2, cwd=tmp_path).codes == (0, 0)
    damage(tmp_path / "parts" / "last.pth.tar", "flipped")
    done = ranks(*flags, "parts", "--resume auto", processes=2, cwd=tmp_path)
    assert done.codes == (0, 0) and "the run goes on from checkpoint-0.pth.tar" in done.err, (
        done.err
    )
    without_damaged(tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    for path in (tmp_path / "parts").glob("*.pth.tar"):
        path.write_bytes(b"PK")
    done = ranks(*flags, "parts", "--resume auto", processes=2, cwd=tmp_path)
    assert done.codes == (2, 2) and "no other checkpoint in" in done.err, done.err


def test_the_best_checkpoint_is_lost(here: Run, weak: Path, tmp_path: Path) -> None:
    """One of another epoch is not taken for it."""
    flags = [
        *flags_of("best of many", weak, tmp_path),
        "run",
        "--lr 1e-9",
    ]  # the first is as good as all others
    here(*flags).ok()
    best = tmp_path / "run" / "model_best.pth.tar"
    assert read_run(tmp_path / "run", best.name)["epoch"] == 0
    best.unlink()  # it shares its bytes with other names
    shutil.copy(tmp_path / "run" / "last.pth.tar", best)
    assert_says(
        here(*flags, "--resume auto").error,
        "--select best",
        "is not that of epoch 1, which was the best",
    )


def bomb(path: Path, state: Path, size: int = 2**26) -> None:
    """Write a checkpoint whose largest record is ``size`` zeros, compressed."""
    with zipfile.ZipFile(state) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        largest = max(old.infolist(), key=lambda record: record.file_size).filename
        for record in old.infolist():
            new.writestr(
                record.filename, bytes(size) if record.filename == largest else old.read(record)
            )


def compressed(path: Path, good: Path) -> None:
    bomb(path, good)


def expanded(path: Path, good: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**30)}, path)


@pytest.mark.parametrize("flag", ["--initial-checkpoint", "--resume"])
@pytest.mark.parametrize(
    ("write", "said"),
    [(compressed, "would unpack to 67"), (expanded, "larger than the whole file")],
)
def test_bombs(here: Run, weak: Path, flag: str, write: Callable, said: str) -> None:
    write(Path("bomb.pth.tar"), weak / "last.pth.tar")
    assert_says(here(*CNN, flag, "bomb.pth.tar").error, flag, "bomb.pth.tar", said)


def test_a_bomb_of_labels(here: Run) -> None:
    torch.save(torch.zeros(3), "labels.pt")
    bomb(Path("bomb.pt"), Path("labels.pt"))
    assert_says(here(*CNN, "--label-noise labels:bomb.pt").error, "--label-noise", "bomb.pt")


FILES_OF_EXPORTS = {
    "export/model.safetensors": "model.safetensors is damaged: its SHA-256 is not that in",
    "export/config.json": "config.json is damaged: its SHA-256 is not that in",
    "result.json": "does not say what was exported",
}


@pytest.fixture(params=FILES_OF_EXPORTS)
def damaged_export(request: pytest.FixtureRequest, finished: Path) -> tuple[Path, str]:
    """A run with a damaged file of its export, and what is said of it."""
    path = finished / request.param
    content = path.read_bytes()
    if path.name == "result.json":
        path.write_text("{}")  # which proves nothing
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    return finished, FILES_OF_EXPORTS[request.param]


def test_a_damaged_export_is_not_published(
    damaged_export: tuple[Path, str], hub_server: HubServer
) -> None:
    run, said = damaged_export
    message = refusal(push_export, run / "export", "me/x")
    assert_says(message, "push to me/x: ", said, "repeat the run's command with --resume")
    assert hub_server.requests == []


@pytest.mark.parametrize(
    "flags",
    [
        "--teacher local-dir:RUN/export",
        "--teacher w2s_cnn2 --teacher-checkpoint RUN",
        "--initial-checkpoint RUN/export/model.safetensors",
    ],
)
def test_a_damaged_export_is_not_loaded(
    here: Run, damaged_export: tuple[Path, str], flags: str
) -> None:
    run, said = damaged_export
    assert_says(here(*CNN, flags.replace("RUN", str(run))).error, flags.split()[0], said)


WRAPPED = '''
import timm
from torch import nn
from timm.models import register_model

class Adapted(nn.Module):
    """Weights under other names, as PEFT has them; all else is that of the model inside."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    def forward(self, x):
        return self.base_model(x)

@register_model
def adapted_cnn(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}
    return Adapted(timm.create_model("w2s_cnn2", **kwargs))
'''


def test_an_export_that_timm_cannot_load(here: Run, tmp_path: Path) -> None:
    (tmp_path / "adapted.py").write_text(WRAPPED)
    done = here(
        *TINY, "--plugins adapted.py --model adapted_cnn", "--output", tmp_path, "--experiment run"
    )
    assert_says(
        done.error,
        str(tmp_path / "run" / "export"),
        "not exported",
        "timm cannot load it",
        "checkpoints",
        "plugin",
    )
    assert "exported to" not in done.out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"last.pth.tar", "checkpoint-1.pth.tar", "metrics.jsonl"} <= names
    assert not {"export", "result.json", ".export.new"} & names


def test_every_step_is_skipped(here: Run, weak: Path, tmp_path: Path) -> None:
    flags = [
        *distil(weak),
        *breaking("breaks_always", 1, 1000),
        "--nan-patience 100",
        "--output",
        tmp_path,
        "--experiment run",
    ]
    for more in ([], ["--resume auto"]):  # nor by going on from its end
        assert_says(here(*flags, *more).error, "every step was skipped", "not exported", "--lr")
        assert not {"export", "result.json"} & {path.name for path in (tmp_path / "run").iterdir()}
    for line in read_events(tmp_path / "run"):
        to_json(line)
