#!/usr/bin/env python3
"""A many-class set for few-shot learning from the fonts of the machine: a class is a character, an image is a font.

    apt-get install fonts-dejavu fonts-liberation fonts-freefont-ttf
    python -m benchmarks.make_glyphs output/glyphs

It writes grey images to OUT/base, OUT/validation and OUT/novel, which have different characters: 64, 16 and 20 % of
them. Left out are characters that look the same as one before them (the Greek and the Latin capital A), that fewer than
--min-images fonts have, and images that are equal in two fonts. Which images there are depends on the fonts; which
split a character is in depends on nothing but the character and --seed.
"""

import argparse
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from w2s_plugins.errors import OneLineParser, UserError, run_main

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
# Latin, Greek, Cyrillic, Armenian, Hebrew, Georgian, punctuation, arrows, mathematics, shapes
BLOCKS = ((0x21, 0x24F), (0x370, 0x52F), (0x531, 0x58A), (0x5D0, 0x5EA), (0x10A0, 0x10FF), (0x1E00, 0x1EFF),
          (0x2010, 0x2046), (0x20A0, 0x20BF), (0x2100, 0x23CF), (0x2580, 0x27BF))
UNASSIGNED = "\U000effff"  # what a font shows for it, it shows for every character that it lacks
SPLITS = (("base", 0.64), ("validation", 0.80), ("novel", 1.0))  # upper ends
ALIKE = 0.5  # share of a character's images that another one has too, from which on it is left out


@dataclass(frozen=True)
class Glyph:
    """One image, and the font that it is from."""

    image: Image.Image
    font: str

    @property
    def key(self) -> bytes:
        return self.image.tobytes()


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--fonts", nargs="+", default=FOLDERS, metavar="PATH", help="font files, or folders of them")
    parser.add_argument("--size", type=int, default=28, help="width and height of the images")
    parser.add_argument("--min-images", type=int, default=20, help="of a character")
    parser.add_argument("--max-classes", type=int, default=0, help="keep this many characters, of all scripts "
                        "(default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    args = parser.parse_args()
    files = find_fonts(args.fonts)
    fonts = {f"{p.stem}-{i:02}": ImageFont.truetype(str(p), round(args.size * 0.75)) for i, p in enumerate(files)}
    counts = write_set(args.out, fonts, characters(), args.size, args.min_images, args.max_classes, args.seed)
    for split, (classes, images) in counts.items():
        print(f"{args.out / split}: {classes} classes, {images} images")
    print(f"from {len(fonts)} fonts")


def find_fonts(paths: Sequence[str]) -> list[Path]:
    """Return the TrueType and OpenType files, by name. Raises `UserError` when there is none."""
    files = set()
    for path in (Path(p).expanduser() for p in paths):
        files |= {path} if path.is_file() else {p for p in path.rglob("*") if p.suffix.lower() in (".ttf", ".otf")}
    if not files:
        raise UserError(f"no fonts in {', '.join(map(str, paths))}: apt-get install fonts-dejavu fonts-liberation "
                        "fonts-freefont-ttf, or name files with --fonts")
    return sorted(files, key=lambda p: (p.name, str(p)))


def characters() -> Iterator[str]:
    """Yield letters, numbers, punctuation and symbols of `BLOCKS`; combining marks and controls are left out."""
    for first, last in BLOCKS:
        for code in range(first, last + 1):
            if unicodedata.category(chr(code))[0] in "LNPS":
                yield chr(code)


def draw(character: str, font: ImageFont.FreeTypeFont, size: int) -> Image.Image:
    """Return a grey image of a character on its baseline, black on white."""
    image = Image.new("L", (size, size), 255)
    ImageDraw.Draw(image).text((size / 2, size * 0.72), character, fill=0, font=font, anchor="ms")
    return image


def glyphs_of(
        character: str,
        fonts: dict[str, ImageFont.FreeTypeFont],
        absent: dict[str, set[bytes]],
        size: int,
) -> list[Glyph]:
    """Return the different images of a character, of the fonts that have it and do not show one of ``absent``."""
    found: dict[bytes, Glyph] = {}
    for name, font in fonts.items():
        glyph = Glyph(draw(character, font, size), name)
        if glyph.key not in absent[name]:
            found.setdefault(glyph.key, glyph)
    return list(found.values())


def place_of(character: str, seed: int) -> float:
    """Return a number in [0, 1), a hash of the character."""
    digest = hashlib.sha256(f"{seed}|{ord(character):x}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2 ** 48


def split_of(character: str, seed: int) -> str:
    """Return the split of a character."""
    return next(split for split, end in SPLITS if place_of(character, seed) < end)


def write_set(
        out: Path,
        fonts: dict[str, ImageFont.FreeTypeFont],
        candidates: Iterator[str] | Sequence[str],
        size: int,
        min_images: int,
        max_classes: int = 0,
        seed: int = 0,
) -> dict[str, tuple[int, int]]:
    """Draw the characters and write ``out/SPLIT/uCODE/FONT.png``.

    Returns:
        Classes and images of each split.

    Raises:
        UserError: the folder is there already, or a split would have no class.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; give a new folder")
    absent = {name: {draw(c, font, size).tobytes() for c in (" ", UNASSIGNED)} for name, font in fonts.items()}
    seen: set[bytes] = set()
    kept: dict[str, list[Glyph]] = {}
    for character in candidates:
        glyphs = glyphs_of(character, fonts, absent, size)
        new = [g for g in glyphs if g.key not in seen]
        if len(new) < min_images or len(new) < ALIKE * len(glyphs):
            continue
        seen |= {g.key for g in new}
        kept[character] = new
    if max_classes:
        kept = {c: kept[c] for c in sorted(kept, key=lambda c: place_of(c, seed + 1))[:max_classes]}
    counts = {split: (0, 0) for split, _ in SPLITS}
    for character, glyphs in kept.items():
        split = split_of(character, seed)
        counts[split] = counts[split][0] + 1, counts[split][1] + len(glyphs)
    empty = [split for split, (classes, _) in counts.items() if not classes]
    if empty:
        raise UserError(f"{len(kept)} characters have {min_images} different images, which leaves none for "
                        f"{', '.join(empty)}; more fonts give more, or lower --min-images")
    for character, glyphs in kept.items():
        folder = out / split_of(character, seed) / f"u{ord(character):05x}"
        folder.mkdir(parents=True)
        for glyph in glyphs:
            glyph.image.save(folder / f"{glyph.font}.png")
    return counts


if __name__ == "__main__":
    run_main(main, "make_glyphs")
