"""What do students learn from a real crowd's labels of photographs? The rows of docs/evidence/crowd.md, *LabelMe*.

    python docs/evidence/studies/labelme.py DATA/labelme lite0.safetensors output/labelme labelme.csv --seeds 0 1 2

`DATA` is what sets.py makes: 1,000 photographs of eight scenes, 2,547 answers of 59 people, and 1,188 photographs to
test. Students of EfficientNet-Lite0 at 128 px learn from these answers, combined in four ways, or from the truth.
CrowdLayer and CoNAL are those of crowd-kit. They learn, beside a linear layer, from single answers on the same frozen
features; a linear layer alone, trained in the same way on the majority's labels, is their control. What is finished
stays.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas
import timm
import torch
from crowdkit.learning import CoNAL, CrowdLayer
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from crowds import accuracies, real  # noqa: E402
from forked import COMMON, PROBE, add_rows, parser_of_study, row_of, train  # noqa: E402
from nine_sets import folder_name  # noqa: E402
from sets import read  # noqa: E402

PIXELS = 128
LITE0 = f"--model tf_efficientnet_lite0 --finetune {{weights}} --img-size {PIXELS}"
PLAIN = f"{LITE0} --config weak-labels --no-refine-labels --loss hard"
RECIPE = f"{LITE0} --config weak-labels"
# by student: how the answers are combined, and its flags
STUDENTS = {
    "cross-entropy, last third": ("majority", PLAIN),
    "cross-entropy, all weights": ("majority", f"{PLAIN} --tune all --lr 0.001 --epochs 6"),
    "linear probe, `elr`": ("majority", f"{LITE0} {PROBE} elr"),
    "linear probe, `balanced_elr`": ("majority", f"{LITE0} {PROBE} balanced_elr"),
    "the recipe, majority": ("majority", RECIPE),
    "the recipe, mean of the votes": ("mean", RECIPE),
    "the recipe, Dawid-Skene": ("dawid-skene", RECIPE),
    "the recipe, `auto`": ("auto", RECIPE),
    "the ceiling": ("truth", f"{LITE0} --config weak-labels-ceiling"),
}
# of crowd-kit's layers and their control; chosen once, not tuned
EPOCHS, BATCH, RATE = 50, 64, 1e-3
LAYERS = {
    "linear layer, cross-entropy": "majority",
    "linear layer, CrowdLayer": "single answers",
    "linear layer, CoNAL": "single answers",
}
COLUMNS = ["set", "seed", "student", "labels", "right", "flags", "top1", "seconds", "cpu", "commit"]


@torch.no_grad()
def features_of(file: Path, weights: Path) -> torch.Tensor:
    """Return the pooled features (N, 1280) of the images of a tar file."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict(load_file(weights), strict=False)
    config = timm.data.resolve_data_config({"input_size": (3, PIXELS, PIXELS)}, model=network)
    transform = timm.data.create_transform(**config)
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in read(file).values()]
    batches = torch.stack([transform(image) for image in images]).split(100)
    return torch.cat([network(batch) for batch in batches])


def train_layer(
    above: CrowdLayer | CoNAL | None,
    seen: torch.Tensor,
    people: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
) -> nn.Linear:
    """Train a linear layer on features, below a layer that models people; return the linear layer.

    Args:
        above: of crowd-kit; None to learn the labels as they are.
        seen: (R, F) features of the image of each label.
        people: (R,) who gave the label.
        labels: (R,) classes.
        classes: how many classes there are.
    """
    linear = nn.Linear(seen.shape[1], classes)
    if isinstance(above, CoNAL):
        above(seen[:2], linear(seen[:2]), people[:2])  # makes its lazy layer
    parameters = [*linear.parameters(), *(above.parameters() if above else ())]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            scores = linear(seen[batch])
            # its authors give the layer probabilities, and take what comes out as logits
            if isinstance(above, CrowdLayer):
                scores = above(scores.softmax(1), people[batch])
            # crowd-kit's sum of a probability and the logarithm of one is a logit, too
            elif isinstance(above, CoNAL):
                scores = above(seen[batch], scores, people[batch])
            loss = functional.cross_entropy(scores, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return linear


def train_layers(data: Path, weights: Path, output: Path, seed: int) -> None:
    """Train the layers of ``LAYERS``, and write what they predict of the test images as runs do."""
    truth, samples, people, labels = (torch.as_tensor(part) for part in real(data / "crowd.csv"))
    classes, count = int(truth.max()) + 1, int(people.max()) + 1
    votes = torch.zeros(len(truth), classes).index_put_((samples, labels), torch.ones(()), True)
    # samples of the table are in the order of its rows, those of the tar file in that of its names
    images = pandas.read_csv(data / "crowd.csv")["filename"].drop_duplicates()
    order = [list(read(data / "train.tar")).index(image) for image in images]
    names = sorted({image.split("/")[0] for image in images})
    target = [names.index(key.split("/")[0]) for key in read(data / "validation.tar")]
    seen, test = (features_of(data / f"{part}.tar", weights) for part in ("train", "validation"))
    mean, deviation = seen.mean(0), seen.std(0) + 1e-6
    seen, test = (seen[order] - mean) / deviation, (test - mean) / deviation
    for name in LAYERS:
        folder = output / folder_name(name)
        if (folder / "seconds.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        before = time.process_time()
        torch.manual_seed(seed)
        if "CrowdLayer" in name:
            linear = train_layer(CrowdLayer(classes, count), seen[samples], people, labels, classes)
        elif "CoNAL" in name:
            linear = train_layer(CoNAL(classes, count), seen[samples], people, labels, classes)
        else:
            linear = train_layer(None, seen, people, votes.argmax(1), classes)
        predicted = linear(test).argmax(1).tolist()
        table = pandas.DataFrame(dict(target=target, student=predicted))
        table.to_csv(folder / "predictions_last.csv", index=False)
        (folder / "seconds.json").write_text(json.dumps(time.process_time() - before))


def train_students(data: Path, weights: Path, output: Path, seed: int) -> None:
    """Train the students of ``STUDENTS`` by train_w2s.py."""
    classes = output / "classes.txt"
    output.mkdir(parents=True, exist_ok=True)
    classes.write_text("\n".join(sorted({key.split("/")[0] for key in read(data / "train.tar")})))
    common = f"{COMMON} --data-dir {data} --train-split train.tar --val-split validation.tar"
    common += f" --class-map {classes} --target-cache {output}/cache --seed {seed}"
    for student, (how, flags) in STUDENTS.items():
        taught = ""
        if how != "truth":
            table = f"labels:{data}/crowd.csv?combine={how}"
            taught = f"--task-loss-weight 0 --teacher {table}"
        train(output / folder_name(student), f"{taught} {common} {flags.format(weights=weights)}")


def rows_of_seed(args: argparse.Namespace, seed: int, output: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a seed, with the share of labels that are right as crowds.py counts it."""
    share_right = accuracies(real(args.data / "crowd.csv")) | {"truth": 100, "single answers": 74.0}
    share_right["mean"] = share_right["majority"]
    flags_of = {name: (how, flags) for name, (how, flags) in STUDENTS.items()}
    flags_of |= {name: (how, f"Adam {RATE}, {EPOCHS} epochs") for name, how in LAYERS.items()}
    for student, (how, flags) in flags_of.items():
        row = row_of(args, "LabelMe", seed, student, flags, output / folder_name(student))
        yield row | dict(labels=how, right=f"{share_right[how]:.1f}")


def main() -> None:
    """Train, and add the rows."""
    parser = parser_of_study(__doc__, ["LabelMe"], ["LabelMe"])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("rows", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, weights = args.data.resolve(), args.weights.resolve()
    for seed in args.seeds:
        output = args.output.resolve() / f"seed{seed}"
        train_students(data, weights, output, seed)
        train_layers(data, weights, output, seed)
        add_rows(args.rows, [*rows_of_seed(args, seed, output)], COLUMNS)


if __name__ == "__main__":
    main()
