"""A pass over a data set decodes each sample once, and asks about it once, whatever the size of batches and parts."""

import torch
from timm.data import resolve_data_config
from torch import Tensor

from tests.parts import small_model, train_settings, write_folder
from w2s_plugins.data import create_dataset, create_train_loader
from w2s_plugins.data.order import StretchBatches
from w2s_plugins.data.wrapper import Wrapper
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.labels.store import Part
from w2s_plugins.models.inference import in_full_batches
from w2s_plugins.teachers.stored import Pass, label_images
from w2s_plugins.training.loaders import loader_settings, train_views

WORLD = World(torch.device("cpu"), 0, 1, False)
PARTS = [Part(0, 0, 3), Part(0, 3, 10)]


class Counting(Wrapper):
    """A dataset that notes which samples it was asked for."""

    def __init__(self, dataset):
        super().__init__(dataset)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> tuple[object, int]:
        self.read.append(index)
        return self.dataset[index]


def test_no_sample_is_decoded_or_run_twice(tmp_path):
    write_folder(tmp_path, {"train": 10})
    dataset = Counting(create_dataset("", str(tmp_path), "train"))
    model = small_model().eval()
    config = resolve_data_config({}, model=model)
    sizes: list[int] = []

    def ask(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return model(images)

    answers = list(label_images(ask, config, dataset, Pass(WORLD, 4), PARTS))
    assert dataset.read == list(range(10)) and sizes == [3, 4, 3]
    assert [len(answer.values) for answer in answers] == [3, 7]
    # one batch of all says the same
    (whole,) = label_images(model, config, dataset, Pass(WORLD, 10), [Part(0, 0, 10)])
    found = torch.cat([answer.values for answer in answers])
    torch.testing.assert_close(found, whole.values, rtol=0, atol=1e-5)

    # what is compiled is asked about as many as ever
    sizes.clear()
    full = list(label_images(in_full_batches(ask, 4), config, dataset, Pass(WORLD, 4), PARTS))
    assert sizes == [4, 4, 4] and len(dataset.read) == 30
    found = torch.cat([answer.values for answer in full])
    torch.testing.assert_close(found, whole.values, rtol=0, atol=1e-5)


def test_views_of_the_student_are_loaded_once(tmp_path):
    write_folder(tmp_path, {"train": 10})
    dataset = Counting(create_dataset("", str(tmp_path), "train"))
    settings = train_settings(f"--data-dir {tmp_path} --num-classes 3 --workers 0", dataset="")
    config = resolve_data_config({}, model=small_model())
    loading = loader_settings(settings.data, Precision(WORLD.device), WORLD)
    views = train_views(settings, config, 3)
    parts = [Part(0, 0, 3), Part(1, 3, 10)]
    loader = create_train_loader(dataset, views, config, loading, chosen=StretchBatches(parts, 4))
    batches = [batch.index.tolist() for batch in loader.epoch(0)]
    assert batches == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9]] and dataset.read == list(range(10))
