"""Corrupted test images: the same pixels for whoever looks at them, more of it at a higher severity."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.parts import write_folder
from w2s_plugins.cli.forms import Corruption, parse_corruption
from w2s_plugins.data import create_dataset, take_slice
from w2s_plugins.data.corruptions import KINDS, Corrupted, corrupt
from w2s_plugins.errors import UserError


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_severities(kind: str, mode: str) -> None:
    y, x = np.mgrid[:40, :56]
    pixels = 127 + 60 * np.sin(x / 3)[..., None] + 50 * np.cos(y / 4)[..., None] + 10 * np.arange(3)
    image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    distances = []
    for severity in range(1, 6):
        found = corrupt(image, Corruption(kind, severity), 5)
        assert (found.size, found.mode) == (image.size, mode)
        assert found.tobytes() == corrupt(image, Corruption(kind, severity), 5).tobytes()
        distances.append(np.abs(np.asarray(found, float) - np.asarray(image, float)).mean())
    assert distances[0] > 0 and distances[4] > 1.2 * distances[0]
    first, second = (corrupt(image, Corruption(kind, 3), seed).tobytes() for seed in (5, 6))
    assert (first != second) == kind.endswith("noise")


def test_a_sample_has_its_own_noise_in_whatever_part_it_is(tmp_path: Path) -> None:
    whole = create_dataset("", str(write_folder(tmp_path, {"train": 9})), "train", flag="--split", input_img_mode="RGB")
    whole.transform = None
    all_of_it, part = (Corrupted(data, parse_corruption("gaussian_noise:2"))
                       for data in (whole, take_slice(whole, "0:4", 3)))
    assert whole.transform is None and part.targets == [all_of_it.targets[i] for i in part.dataset.indices]
    for place, index in enumerate(part.dataset.indices):
        assert part[place][0].tobytes() == all_of_it[index][0].tobytes() != whole[index][0].tobytes()
    noise = [np.asarray(all_of_it[i][0], float) - np.asarray(whole[i][0], float) for i in (0, 1)]
    assert not np.array_equal(*noise)
    all_of_it.transform = lambda image: image.size
    assert isinstance(all_of_it[0][0], tuple) and isinstance(part[0][0], Image.Image)


@pytest.mark.parametrize(("text", "message"), [
    ("gausian_noise:3", "unknown kind 'gausian_noise' .nearest: gaussian_noise"),
    ("pixelate", "expected pixelate:N with a severity of 1 to 5"),
    ("pixelate:12", "expected pixelate:N"),
])
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_corruption(text)
