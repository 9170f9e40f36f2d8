"""``--folds``: what models say of labelled samples that they have not learned."""

import csv
from pathlib import Path

import pytest
import timm
import torch

from tests.parts import write_digits
from w2s_plugins.data import create_dataset, take_slice
from w2s_plugins.errors import UserError
from w2s_plugins.study.planning import fold_slices

from .conftest import TINY, Run, read_result


def test_each_sample_is_labelled_by_the_model_that_has_not_seen_it(
    here: Run, tmp_path: Path
) -> None:
    flags = [*TINY, "--model w2s_cnn2 --folds 3", "--output", tmp_path, "--experiment oof"]
    done = here(*flags).ok()
    images = create_dataset("w2s/digits", None, "train")
    slice_of_all = set(take_slice(images, "0:64", 0).indices)
    with (tmp_path / "oof" / "out_of_fold.csv").open() as file:
        rows = {int(row["id"]): row for row in csv.DictReader(file)}
    assert set(rows) == slice_of_all
    right = 0
    for number, part in enumerate(("0:21", "21:43", "43:64"), start=1):
        folder = tmp_path / "oof" / f"fold{number}"
        model = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
        config = timm.data.resolve_data_config(model=model)
        images.transform = timm.data.create_transform(**config, is_training=False)
        indices = take_slice(images, part, 0).indices
        with torch.no_grad():
            said = model(torch.stack([images[i][0] for i in indices])).softmax(dim=1)
        for i, shares in zip(indices, said):
            found = dict(pair.split(":") for pair in rows[i]["top_k"].split(";"))
            torch.testing.assert_close(
                torch.tensor([float(found[str(c)]) for c in range(10)]), shares
            )
            right += int(shares.argmax() == images.targets[i])
        splits = read_result(folder)["data"]["splits"]
        assert splits["train"]["num_samples"] == 64 - len(indices) and splits["val"][
            "num_samples"
        ] == len(indices)
    record = read_result(tmp_path / "oof")
    assert record["out_of_fold"] == {"samples": 64, "top1": pytest.approx(100 * right / 64)}
    assert "out of fold" in done.out and right == sum(
        row["label"] == row["truth"] for row in rows.values()
    )
    again = here(*flags, "--resume auto").ok()
    assert "--folds: fold3 is complete" in again.err


def test_a_semicolon_in_the_name_of_a_class_and_uneven_parts(here: Run, tmp_path: Path) -> None:
    """Pairs could not be told apart: each class has a column of its own. Of all parts each image counts alike."""
    write_digits(7, lambda number, label: tmp_path / "data/train" / ("a;b" if label % 2 else "c"))
    done = here(
        *TINY,
        "--dataset",
        "",
        "--data-dir",
        tmp_path / "data",
        "--train-slice",
        "",
        "--batch-size 3 --model w2s_cnn2 --folds 2",
        "--output",
        tmp_path,
        "--experiment oof",
    ).ok()
    rows = list(csv.DictReader((tmp_path / "oof/out_of_fold.csv").open()))
    assert len(rows) == 7 and all(
        float(row["a;b"]) + float(row["c"]) == pytest.approx(1) for row in rows
    )
    record = read_result(tmp_path / "oof")
    parts = [fold["metrics"]["top1"] for fold in record["stages"].values()]
    top1 = 100 * sum(row["label"] == row["truth"] for row in rows) / 7
    assert record["out_of_fold"]["top1"] == pytest.approx(top1) and abs(top1 - sum(parts) / 2) > 0.1
    # a figure on few images says on how many
    assert ["all", f"{top1:.2f}", *["(n", "=", "7)", "-"]] in [
        line.split() for line in done.out.splitlines()
    ]


def test_slices() -> None:
    assert fold_slices("10:20", 2) == [("15:20", "10:15"), ("10:15", "15:20")]
    assert fold_slices(None, 4)[1] == ("0.0:0.25,0.5:1.0", "0.25:0.5")
    with pytest.raises(UserError, match="the slice has no end"):
        fold_slices("10:", 2)
