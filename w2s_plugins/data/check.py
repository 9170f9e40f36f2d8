"""Reads every image of a folder or tar files before a training does, and says what is wrong with them."""

import hashlib
import io
import os
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from timm.data.dataset_factory import _TRAIN_SYNONYM
from timm.data.readers.img_extensions import get_img_extensions
from tqdm import tqdm

from ..errors import UserError, near_path, one_line
from ..files import special_kind
from ..tokens import shown
from .datasets import CLASS_SPLITS, split_synonyms
from .decoding import explain_unreadable

CHUNK = 32  # files that a process takes at a time
_EXIF_ORIENTATION = 0x0112
_TAR_BLOCK = 512


@dataclass(frozen=True)
class Finding:
    """Something about one file or folder; an error would end or spoil a training, a note may be meant."""

    path: str
    text: str
    error: bool = True


@dataclass
class Report:
    """What a check found.

    Args:
        images: how many were read.
        findings: about them.
        layout: what training makes of the folder, where that is not splits with folders of classes.
    """

    images: int = 0
    findings: list[Finding] = field(default_factory=list)
    layout: str = ""

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.error]

    def lines(self) -> Iterator[str]:
        """Yield the findings, errors first, and a last line that counts them."""
        for finding in sorted(self.findings, key=lambda f: (not f.error, f.path)):
            yield shown(f"{'error' if finding.error else 'note'}: {finding.path}: {finding.text}")
        if self.layout:
            yield shown(self.layout)
        yield f"{self.images} images, {len(self.errors)} errors, {len(self.findings) - len(self.errors)} notes"


def check_folder(root: Path, workers: int = 1, progress: bool = False, unlabeled: bool = False) -> Report:
    """Read and decode all images below a folder of splits, of one split, or in a tar file.

    Args:
        root: the folder or file.
        workers: processes.
        progress: show how far it is.
        unlabeled: it is for ``--unlabeled``, as is any folder with images that are not in folders of classes.

    Raises:
        UserError: no such folder, or nothing to check in it.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder{near_path(root)}; expected one with train/ and validation/, or a tar "
                        "file")
    files = [root] if root.is_file() else sorted(_files(root))
    images = [p for p in files if p.suffix.lower() in get_img_extensions(as_set=True)]
    archives = [p for p in files if p.suffix.lower() == ".tar"]
    if not images and not archives:
        raise UserError(f"{root}: no images and no tar files in it; expected train/ and validation/ with class folders")
    splits = _splits(root)
    unlabeled = unlabeled or ([*splits] == [str(root)] and any(image.parent == root for image in images))
    splits = {str(root): set()} if unlabeled else splits
    report = Report(findings=[*_class_folders(splits), *_loops(files), *_other_files(files, images, archives)])
    if unlabeled:
        report.layout = (f"training takes these as images without labels, whatever folders they are in: --unlabeled "
                         f"{root} --teacher NAME")
    elif beside := _beside(root, splits, images):
        report.layout = (f"no split, and not read by training: {', '.join(map(str, beside))}; --unlabeled {beside[0]} "
                         f"--teacher NAME takes it as images without labels, and with --data-dir {root} "
                         "--task-loss-weight W each batch has labelled ones too")
    hashes: dict[str, list[str]] = defaultdict(list)
    with ProcessPoolExecutor(max(1, workers)) as pool:
        done = [result for results in pool.map(_check_archive, archives) for result in results]
        files = pool.map(_check_file, images, chunksize=CHUNK)
        done += tqdm(files, total=len(images), unit="image", disable=not progress)
    for path, digest, findings in done:
        report.findings += findings
        if digest:
            report.images += 1
            hashes[digest].append(path)
    report.findings += _duplicates([*splits], root, hashes)
    return report


def _files(root: Path) -> Iterator[Path]:
    """Yield what lies below a folder, through links as timm's reader does; also links that lead nowhere, or back."""
    for folder, subfolders, names in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        loops = [name for name in subfolders if here.is_relative_to((here / name).resolve())]
        subfolders[:] = [name for name in subfolders if name not in loops]
        yield from (Path(folder, name) for name in (*names, *loops))


def check_image(data: bytes, name: str) -> list[Finding]:
    """Decode one image to the end and say what is odd about it."""
    if not data:
        return [Finding(name, "empty file")]
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                mode, fmt, frames = image.mode, image.format, getattr(image, "n_frames", 1)
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
                width, height = image.size
                image.convert("RGB")
    except UnidentifiedImageError as error:
        return [Finding(name, explain_unreadable(error))]
    except Exception as error:  # decoders raise whatever a broken file makes them stumble on
        return [Finding(name, f"cannot be decoded ({explain_unreadable(error)})")]
    if not _fits_suffix(fmt, name):
        notes.append(f"is a {fmt} file")
    if mode in ("CMYK", "YCbCr", "LAB"):
        notes.append(f"colours are {mode}: converted to RGB without a profile")
    if mode.startswith(("I", "F")):
        notes.append(f"more than 8 bits a pixel ({mode}): Pillow clips or scales them in the conversion to RGB")
    if mode in ("P", "PA"):
        notes.append("has a palette: converted to RGB")
    if mode in ("RGBA", "LA"):
        notes.append("has transparency, which is left out")
    if frames > 1:
        notes.append(f"has {frames} frames: the first is used")
    if orientation not in (0, 1):
        notes.append(f"EXIF asks for a rotation (orientation {orientation}), which is ignored")
    if min(width, height) < 8:
        notes.append(f"is {width} x {height} pixels")
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        notes.append(f"is very large, {width} x {height} pixels: above twice {Image.MAX_IMAGE_PIXELS} Pillow refuses")
    return [Finding(name, note, error=False) for note in notes]


def _fits_suffix(fmt: str | None, name: str) -> bool:
    known = Image.registered_extensions().get(Path(name).suffix.lower())
    return known is None or fmt == known or {fmt, known} <= {"JPEG", "MPO"}


Checked = tuple[str, str | None, list[Finding]]  # name, hash of what was read, findings


def _checked(name: str, data: bytes) -> Checked:
    return name, hashlib.blake2b(data, digest_size=16).hexdigest(), check_image(data, name)


def _unread(path: Path, text: str) -> Checked:
    return str(path), None, [Finding(str(path), text)]


def _check_file(path: Path) -> Checked:
    if kind := special_kind(path):
        return _unread(path, f"{kind}, not a regular file")
    try:
        return _checked(str(path), path.read_bytes())
    except OSError as error:
        return _unread(path, f"cannot be read ({error.strerror})")


def _check_archive(path: Path) -> list[Checked]:
    if kind := special_kind(path):
        return [_unread(path, f"{kind}, not a regular file")]
    results = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix.lower() in get_img_extensions(as_set=True):
                    results.append(_checked(f"{path}/{member.name}", archive.extractfile(member).read()))
            end = archive.offset
        if path.stat().st_size < end + _TAR_BLOCK:  # two empty blocks end an archive; `tarfile` needs none
            results.append(_unread(path, "cut off: the end of the archive is missing"))
    except (tarfile.TarError, OSError, EOFError) as error:
        results.append(_unread(path, f"cut off or damaged ({one_line(error)})"))
    return results


def _loops(files: list[Path]) -> list[Finding]:
    return [Finding(str(p), "link to a folder that it is in, whose images a training reads again and again")
            for p in files if p.is_dir()]


def _other_files(files: list[Path], images: list[Path], archives: list[Path]) -> list[Finding]:
    others = set(files) - set(images) - set(archives)
    return [Finding(str(p), "no image by its name: is not read", error=False) for p in others
            if not p.name.startswith(".") and not p.is_dir()]


def _splits(root: Path) -> dict[str, set[str]]:
    """Return the class folders of each split folder; a folder without splits is one."""
    known = {*split_synonyms(), *(name for names in CLASS_SPLITS for name in names)}
    if root.is_file():
        return {}
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name in known) or [root]
    return {str(f): {c.name for c in f.iterdir() if c.is_dir()} for f in folders}


def _beside(root: Path, splits: dict[str, set[str]], images: list[Path]) -> list[Path]:
    """Return the folders with images that lie beside those of splits."""
    if root.is_file() or str(root) in splits:
        return []
    folders = {root / image.relative_to(root).parts[0] for image in images if image.parent != root}
    return sorted(folder for folder in folders if str(folder) not in splits)


def _class_folders(splits: dict[str, set[str]]) -> list[Finding]:
    """Find empty class folders, and classes that some splits lack; those of few-shot learning differ on purpose.

    A split that is only evaluated on may lack some; training needs all of them.
    """
    findings = []
    extensions = get_img_extensions(as_set=True)
    for split, classes in splits.items():
        for name in classes:
            folder = Path(split, name)
            if not any(p.suffix.lower() in extensions for p in _files(folder)):
                findings.append(Finding(str(folder), "class folder without images"))
    few_shot = any(Path(s).name in ("base", "novel") for s in splits)
    every = set().union(*splits.values()) if splits else set()
    for split, classes in splits.items():
        if classes and not few_shot:
            findings += [Finding(str(Path(split, n)), "class of other splits, but not of this one",
                                 error=Path(split).name in _TRAIN_SYNONYM)
                         for n in sorted(every - classes)]
    return findings


def _duplicates(splits: list[str], root: Path, hashes: dict[str, list[str]]) -> Iterable[Finding]:
    """Yield images that are in two splits: an evaluation on them is too good. Within a split they are counted."""
    inside = Counter()
    for paths in hashes.values():
        by_split = {next((s for s in splits if p.startswith(f"{s}/")), ""): p for p in paths}
        if len(by_split) > 1:
            first, *others = sorted(by_split.values())
            yield Finding(first, f"the same file is in another split: {', '.join(others)}")
        elif len(paths) > 1:
            inside[next(iter(by_split))] += len(paths) - 1
    for split, count in inside.items():
        yield Finding(split or str(root), f"{count} files are copies of others in it", error=False)
