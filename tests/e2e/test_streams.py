"""A real stream, read by timm from tar files: it trains, and the log says what is not promised."""

import json
import math
from pathlib import Path

from tests.e2e.conftest import BRIEF, Run, read_events, taught
from tests.parts import encoded, write_tar
from w2s_plugins.data.digits import Digits

SHARD = 32


def write_shards(folder: Path, split: str, shards: int) -> dict:
    """Write digits as WebDataset shards and return what ``_info.json`` says of them."""
    digits, names = Digits(split), []
    for shard in range(shards):
        names.append(f"{split}-{shard:02}.tar")
        members = {}
        for i in range(shard * SHARD, (shard + 1) * SHARD):
            image, label = digits[i]
            members |= {f"{i:04}.png": encoded(image), f"{i:04}.cls": str(label).encode()}
        write_tar(folder / names[-1], members)
    return dict(
        name=split, filenames=names, shard_lengths=[SHARD] * shards, num_samples=SHARD * shards
    )


def test_webdataset(here: Run, weak: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    splits = {
        split: write_shards(data, split, shards)
        for split, shards in (("train", 4), ("validation", 2))
    }
    (data / "_info.json").write_text(json.dumps({"splits": splits}))
    flags = [
        *BRIEF,
        "--dataset wds/digits",
        "--data-dir",
        data,
        "--num-classes 10 --model w2s_cnn5",
        *taught(weak),
        "--epochs 3 --mixup 0.2 --reprob 0.2",
        "--output",
        tmp_path,
        "--experiment run",
    ]
    done = here(*flags, "--stop-epoch 1").ok()
    assert (
        "Streaming dataset: order and views follow timm; exact resumption is not promised"
        in done.err
    )
    assert (
        done.err.count("the evaluation split is a stream, of which it sees the student's view") == 1
    )
    here(*flags, "--resume auto").ok()
    trained, evaluations = (read_events(tmp_path / "run", kind) for kind in ("train", "eval"))
    assert [e["step"] for e in trained] == list(range(24))
    assert all(math.isfinite(e["terms"]["loss"]) for e in trained)
    assert [e["epoch"] for e in evaluations] == [0, 1, 2]
    assert all(
        (e["val"]["top1"] * 2 * SHARD / 100).is_integer() for e in evaluations
    )  # each of 64 counted once
    refused = here(*flags, "--experiment cached --teacher-targets cached --mixup 0")
    assert "needs a dataset that can be indexed" in refused.error
