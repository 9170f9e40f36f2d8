"""What a prediction by ``python -m w2s_plugins.predictions`` can be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..field import Concern, Count, Pixels, Processes, ProperShare, Role, flag


@dataclass(frozen=True, kw_only=True)
class Prediction(Concern, role=Role.WHERE):
    """What is predicted, and where it goes."""

    # the model and the images
    model: str = flag(
        None,
        "a run folder, its export or a checkpoint in it, timm name with pretrained weights, "
        "hf-hub:ORG/NAME, local-dir:PATH, or hf:, clip:, onnx: and so on (docs/teachers.md)",
        names="model",
        metavar="MODEL",
    )
    dir: str = flag(
        None,
        "folder of images, at any depth, a tar file, or one image; shards as wds/PATH",
        names="dir",
        metavar="DIR",
    )
    # weights, and the names of the classes
    checkpoint: str | None = flag(None, "weights of MODEL: a file or a run folder", metavar="PATH")
    class_names: str | None = flag(
        None,
        "file with one name a line, or a,b,c; for a model that knows none of its own",
        metavar="NAMES",
    )
    task: Literal["classification", "multilabel"] | None = flag(
        None, "one class an image, or several (default: what MODEL was trained for)"
    )
    prompts: str | None = flag(
        None, "templates of a clip: model, such as 'a photo of a {}|a {}'", metavar="TEXTS"
    )
    # the model's, unless it is given here
    img_size: Pixels | None = flag(None, "input size (default: the model's own)")
    # what is written; without any file the best classes of one image are printed
    output: Path | None = flag(
        None,
        "table, .csv, .tsv, .jsonl, .ndjson or .parquet; without it the classes of one image are "
        "printed",
        role=Role.REPORT,
        metavar="FILE",
    )
    features: Path | None = flag(
        None,
        "names of the images and their features (N, D), what the classifier of MODEL is given, "
        ".npz or .parquet; alone, or beside --output",
        role=Role.REPORT,
        metavar="FILE",
    )
    top_k: Count | None = flag(
        None,
        "add a column with the K most likely classes",
        role=Role.REPORT,
        metavar="K",
        one_of="form",
    )
    all: bool = flag(False, "add the probability of every class", role=Role.REPORT, one_of="form")
    multilabel_threshold: ProperShare | None = flag(
        None,
        "probability from which on an image has a class, of a MODEL for several (default: those "
        "that its run has chosen on a held-out part, else 0.5)",
        role=Role.REPORT,
    )
    # how it is done
    batch_size: Count = flag(64, "images at a time", names=("-b", "--batch-size"))
    workers: Processes = flag(4, "processes that decode images", names=("-j", "--workers"))
    # another decoder gives other pixels, by a little
    decoder: Literal["pil", "fast"] = flag(
        "fast",
        "what decodes images and makes the first crop or resize; fast: JPEG files no larger than "
        "the network needs, whose pixels differ by half a level; pil: Pillow, as timm",
    )
    # where, and with whose code
    device: str | None = flag(
        None, "cpu, cuda, ... (default: cuda where there is one)", metavar="D"
    )
    plugins: Sequence[str] = flag([], "modules or files to import", metavar="FILE")

    @property
    def wants_labels(self) -> bool:
        """False where features alone are wanted."""
        return self.output is not None or self.features is None
