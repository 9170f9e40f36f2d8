"""Sets of images for the studies, made from public files: what docs/evidence/nine-sets.md was measured on.

    python docs/evidence/studies/sets.py SOURCE DATA

`SOURCE` has what can be had without an account. A set whose files are missing is left out:

    cifar10/, grocery/, gtsrb/       train.tar and validation.tar of CLASS/IMAGE
    pacs/                            photo.tar, art_painting.tar, cartoon.tar and sketch.tar of CLASS/IMAGE
    fashion-mnist/                   the four idx files of Debian's package dataset-fashion-mnist
    emoji-datasource-google-16.0.0.tgz, emoji-datasource-twitter-16.0.0.tgz, lobehub-fluent-emoji-3d-1.1.0.tgz
                                     of the npm registry
    clothing-dataset-small/          a clone of github.com/alexeygrigorev/clothing-dataset-small
    GroceryStoreDataset/             a clone of github.com/marcusklasson/GroceryStoreDataset
    CIFAR-100-dataset/               a clone of github.com/cyizhuo/CIFAR-100-dataset
    crowd-embeddings/                a clone of github.com/pilot7747/crowd-embeddings, of which data/LabelMe is needed

`DATA` gets a folder with train.tar and validation.tar for each set. That of LabelMe also has crowd.csv, what people said
of its training images, and official_validation.tar, 500 more.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# by set: its folder, images with labels and without, flags of every run
SETS = {
    "CIFAR-10": ("cifar10", 1000, 2000, "--val-slice 0:1000"),
    "groceries": ("grocery", 800, 1840, "--val-slice 0:1500"),
    "traffic signs": ("gtsrb", 1500, 2000, "--hflip 0 --val-slice 0:1500"),
    "photos": ("photos", 200, 800, ""),
    "paintings": ("paintings", 300, 1000, ""),
    "cartoons": ("cartoons", 300, 1200, ""),
    "sketches": ("sketches", 400, 1600, "--val-slice 0:1500"),
    "Fashion-MNIST": ("fashion", 700, 2000, "--val-slice 0:1500"),
    "emoji": ("emoji", 800, 1600, ""),
}
# tried when all was chosen: photographs of clothes, 400 px wide
AFTERWARDS = {"clothes": ("clothes", 920, 2148, "")}
# for decoder.py: groceries in their full size, 348 px
LARGE = {"large groceries": ("large_groceries", 800, 1840, "")}
# pictures of one thing, which stay together when a set is divided: an emoji, a sign that was photographed many times
PICTURES_OF_A_SIGN = 30
PACS = {"photos": "photo", "paintings": "art_painting", "cartoons": "cartoon", "sketches": "sketch"}
TRAINED_ON = {"photos": 1000, "paintings": 1300, "cartoons": 1500, "sketches": 2000}
# a class of emoji has at least as many, and no flags of countries, which nobody knows by their look alone
EMOJI_OF_A_CLASS = 12
EMOJI_TESTED = 3  # one emoji in so many


def group_of(folder: str, name: str) -> tuple[str, str]:
    """Return what a picture shows, by its class and file name: other pictures of the same thing have the same."""
    kind, stem = Path(name).parent.name, Path(name).stem
    if folder == "gtsrb":
        return kind, str(int(stem) // PICTURES_OF_A_SIGN)
    if folder == "emoji":
        return kind, stem.split("_")[0]
    return kind, stem


def write(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar file of names and contents."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as target:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))


def read(file: Path) -> dict[str, bytes]:
    """Return the files of a tar file by name."""
    with tarfile.open(file) as source:
        return {
            member.name: source.extractfile(member).read() for member in source if member.isfile()
        }


def make_pacs(source: Path, data: Path) -> None:
    """Shuffle each domain, and divide it."""
    for folder, domain in PACS.items():
        images = read(source / "pacs" / f"{domain}.tar")
        names = sorted(images)
        random.Random(0).shuffle(names)
        cut = TRAINED_ON[folder]
        write(data / folder / "train.tar", ((name, images[name]) for name in names[:cut]))
        write(data / folder / "validation.tar", ((name, images[name]) for name in names[cut:]))


def make_clothes(source: Path, data: Path) -> None:
    """Write the photographs as they are; those of its test and validation sets are tested on."""
    folder = source / "clothing-dataset-small"
    for part, splits in (("train", ("train",)), ("validation", ("test", "validation"))):
        files = sorted(file for split in splits for file in (folder / split).glob("*/*.jpg"))
        if not files:
            raise FileNotFoundError(f"{folder / splits[0]} is not there")
        members = ((f"{file.parent.name}/{file.name}", file.read_bytes()) for file in files)
        write(data / "clothes" / f"{part}.tar", members)


def make_large_groceries(source: Path, data: Path) -> None:
    """Write the photographs of the official training and test split as they are, by their numbered classes."""
    folder = source / "GroceryStoreDataset" / "dataset"
    for part, split in (("train", "train"), ("validation", "test")):
        lines = (folder / f"{split}.txt").read_text().splitlines()
        rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
        members = (
            (f"{int(kind):02}/{Path(name).name}", (folder / name).read_bytes())
            for name, kind, _ in rows
        )
        write(data / "large_groceries" / f"{part}.tar", members)


def make_fashion(source: Path, data: Path) -> None:
    """Write Fashion-MNIST as PNG files of classes 0 to 9."""
    for part, name in (("train", "train"), ("validation", "t10k")):
        with gzip.open(source / "fashion-mnist" / f"{name}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(source / "fashion-mnist" / f"{name}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        if part == "train":
            images, labels = images[:20000], labels[:20000]
        write(
            data / "fashion" / f"{part}.tar",
            (
                (f"{label}/{n:05}.png", png(image))
                for n, (image, label) in enumerate(zip(images, labels))
            ),
        )


def png(image: np.ndarray) -> bytes:
    """Return an image, (H, W) or (H, W, 3), as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def make_emoji(source: Path, data: Path) -> None:
    """Write the emoji of three vendors on white, by subcategory; all pictures of an emoji are in one part."""
    archives = {
        vendor: read_tgz(source / f"{package}.tgz", keep)
        for vendor, package, keep in (
            ("google", "emoji-datasource-google-16.0.0", "package/img/google/64/"),
            ("twitter", "emoji-datasource-twitter-16.0.0", "package/img/twitter/64/"),
            ("fluent", "lobehub-fluent-emoji-3d-1.1.0", "package/assets/"),
        )
    }
    with tarfile.open(source / "emoji-datasource-google-16.0.0.tgz") as file:
        emoji = json.load(file.extractfile("package/emoji.json"))
    classes: dict[str, list[str]] = {}
    for one in emoji:
        classes.setdefault(one["subcategory"], []).append(Path(one["image"]).stem)
    parts: dict[str, list[tuple[str, bytes]]] = {"train": [], "validation": []}
    for kind, names in sorted(classes.items()):
        if len(names) < EMOJI_OF_A_CLASS or kind == "country-flag":
            continue
        order = sorted(names)
        random.Random(0).shuffle(order)
        for number, name in enumerate(order):
            part = "train" if number % EMOJI_TESTED else "validation"
            for vendor, images in archives.items():
                if name in images:
                    parts[part].append(
                        (f"{kind.replace(' ', '')}/{name}_{vendor}.png", on_white(images[name]))
                    )
    for part, members in parts.items():
        write(data / "emoji" / f"{part}.tar", members)


# SHA-256 of the pixels of all images of a part, by name, before anything is scaled: what others have is the same
PIXELS = {
    "cifar100/train": "cce1187db8e646fa52dfddf6b2a8d344af19e241a925d5385bb92f7ffb1f0315",
    "cifar100/validation": "9001de3e24541a7a9bce8db9bd09464528ee16c7657514896d6ea3b9b898bf5f",
    "labelme/train": "858bc37bc6aff6de1b5279c20194d69f42867de8d237783b24a8e163aee3a373",
    "labelme/validation": "6ac30057e4c49949a22647d75545daf03e97beea9f392a02d2882ca3f9f826f1",
    "labelme/official_validation": "b11ee4a17732922fe8cb2a20cfde9481c3bae2c5a50e1d3ca4f2be073ee8a9e4",
}
COUNTS = {
    "cifar100/train": 50_000,
    "cifar100/validation": 10_000,
    "labelme/train": 1_000,
    "labelme/validation": 1_188,
    "labelme/official_validation": 500,
}
LABELME_SIDE = 128  # pixels of the shorter side


def check(part: str, files: Sequence[Path]) -> None:
    """Raise a `ValueError` unless a part of a set has the images that the studies were made with."""
    if len(files) != COUNTS[part]:
        raise ValueError(f"{part}: {len(files)} images, expected {COUNTS[part]}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}".encode())
        with Image.open(file) as image:
            digest.update(image.convert("RGB").tobytes())
    if digest.hexdigest() != PIXELS[part]:
        raise ValueError(f"{part}: its pixels are others, {digest.hexdigest()}")


def files_of(folder: Path, suffix: str) -> list[Path]:
    """Return the images in the class folders of a folder, in order."""
    files = sorted(folder.glob(f"*/*.{suffix}"))
    if not files:
        raise FileNotFoundError(f"{folder} is not there")
    return files


def make_cifar100(source: Path, data: Path) -> None:
    """Write the images of 32 pixels as they are."""
    for part, split in (("train", "train"), ("validation", "test")):
        files = files_of(source / "CIFAR-100-dataset" / split, "png")
        check(f"cifar100/{part}", files)
        members = ((f"{file.parent.name}/{file.name}", file.read_bytes()) for file in files)
        write(data / "cifar100" / f"{part}.tar", members)


def make_labelme(source: Path, data: Path) -> None:
    """Write the photographs of scenes at 128 pixels, and what people said of the first 1,000."""
    folder = source / "crowd-embeddings" / "data" / "LabelMe"
    for part, split in (
        ("train", "train"),
        ("validation", "test"),
        ("official_validation", "valid"),
    ):
        files = files_of(folder / split, "jpg")
        check(f"labelme/{part}", files)
        members = ((f"{file.parent.name}/{file.stem}.png", scaled(file)) for file in files)
        write(data / "labelme" / f"{part}.tar", members)

    # a line an image, a column a person; the names of the classes follow from their numbers in another file
    names, numbers, lines = (
        (folder / f"{name}.txt").read_text().splitlines()
        for name in ("labels_train_names", "labels_train", "answers")
    )
    class_of = dict(zip(numbers, names))
    images = (folder / "filenames_train.txt").read_text().splitlines()
    with (data / "labelme" / "crowd.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["filename", "annotator", "label"])
        for image, name, line in zip(images, names, lines):
            for person, answer in enumerate(line.split()):
                if answer != "-1":
                    key = f"{name}/{Path(image).stem}.png"
                    writer.writerow([key, f"person{person:02}", class_of[answer]])


def scaled(file: Path) -> bytes:
    """Return a photograph with its shorter side at 128 pixels, as a PNG file."""
    with Image.open(file) as image:
        factor = LABELME_SIDE / min(image.size)
        size = [max(LABELME_SIDE, round(side * factor)) for side in image.size]
        small = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return png(np.asarray(small))


def read_tgz(file: Path, keep: str) -> dict[str, bytes]:
    """Return the pictures in a folder of an npm package by the code points of their emoji."""
    found = {}
    with tarfile.open(file) as source:
        for member in source:
            if member.isfile() and member.name.startswith(keep):
                found[Path(member.name).stem] = source.extractfile(member).read()
    return found


def on_white(content: bytes) -> bytes:
    """Return a picture of 64 px on white as a PNG file."""
    image = (
        Image.open(io.BytesIO(content)).convert("RGBA").resize((64, 64), Image.Resampling.BICUBIC)
    )
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return png(np.asarray(canvas.convert("RGB")))


def divide_by_thing(parts: Path, labelled: int, photos: int, seed: int, folder: Path) -> None:
    """Divide a set so that all pictures of a thing are among the labelled ones or among those without labels, if that is
    not done.

    The set has train.tar and validation.tar. The folder gets labelled.tar, photos.tar of numbered images, rest.tar (the
    same with their classes), classes.txt and test.tar.
    """
    if (folder / "test.tar").exists():
        return
    images = read(parts / "train.tar")
    groups: dict[tuple[str, str], list[str]] = {}
    for name in sorted(images):
        groups.setdefault(group_of(parts.name, name), []).append(name)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    names = [name for group in order for name in groups[group]]
    third = max(len(names) // 3, labelled)
    with_labels = random.Random(seed).sample(names[:third], labelled)
    without = random.Random(seed).sample(names[third:], min(photos, len(names) - third))
    write(folder / "labelled.tar", ((name, images[name]) for name in with_labels))
    write(folder / "rest.tar", ((name, images[name]) for name in without))
    write(
        folder / "photos.tar",
        ((f"{n:05}{Path(name).suffix}", images[name]) for n, name in enumerate(without)),
    )
    kinds = sorted({name.split("/")[0] for name in names})
    (folder / "classes.txt").write_text("".join(f"{kind}\n" for kind in kinds))
    (folder / "test.tar").symlink_to((parts / "validation.tar").resolve())


def link(source: Path, data: Path, folders: Iterable[str]) -> Iterator[str]:
    """Link the sets that are ready; yield those that are not there."""
    for folder in folders:
        if (source / folder).exists():
            (data / folder).symlink_to((source / folder).resolve())
        else:
            yield folder


def main() -> None:
    """Make the sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    args.data.mkdir(parents=True)
    for missing in link(args.source, args.data, ("cifar10", "grocery", "gtsrb")):
        print(f"{args.source / missing} is not there")
    for make in (
        make_pacs,
        make_fashion,
        make_emoji,
        make_clothes,
        make_large_groceries,
        make_cifar100,
        make_labelme,
    ):
        try:
            make(args.source, args.data)
        except FileNotFoundError as error:
            print(error)


if __name__ == "__main__":
    main()
