"""Folders of images, read as every viewer shows them, without loss.

An image is turned as its EXIF orientation says, palettes become their colours, and transparent parts are laid on white.
Bytes have 256 levels and bilevel images 2; 16-bit and float images keep their values, and colours of 16 bits, which
Pillow reads as 8, are refused. Files whose names begin with a dot are ignored. A folder of folders is read as one class
a folder, in the order of their names.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from sdediff.data.arrays import Array, readable
from sdediff.data.remarks import warn

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # no others, whatever a file is called
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_GREY = ("1", "L", "LA", "La")
_KINDS = {"bilevel": 1, "grey": 2, "colour": 3}  # a kind converts to every later one without loss


class _Picture(NamedTuple):
    """Pixels ``(H, W)`` or ``(H, W, 3)``, their kind, and the lossy conversions applied to them."""

    pixels: Array
    kind: str
    conversions: tuple[str, ...]


class Folder(NamedTuple):
    """Images ``(n, C, H, W)``, and the class of each, if the folder has classes."""

    images: Array
    labels: Array | None
    classes: tuple[str, ...]


def read_folder(folder: Path) -> Folder:
    """Read the images of a folder or, if it has none, those of its subfolders, one class a subfolder.

    Raises:
        ValueError: if there are none, one is damaged, or they differ in size or kind; in one line.
    """
    groups = {"": _images_in(folder)}
    if not groups[""]:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        groups = {path.name: files for path in inner if (files := _images_in(path))}
    files = [file for group in groups.values() for file in group]
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images = _stacked(files, folder)
    if "" in groups:
        return Folder(images, None, ())
    return Folder(images, np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()]), tuple(groups))


def _images_in(folder: Path) -> list[Path]:
    found = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(file for file in found if not file.name.startswith("."))


def _stacked(files: Sequence[Path], folder: Path) -> Array:
    """Return all images in one array, channels first; warn once of each lossy conversion."""
    pictures: list[_Picture] = []
    for file in files:
        pictures.append(_picture(file))
        came, first = (picture.pixels.shape[:2] for picture in (pictures[-1], pictures[0]))
        if came != first:
            raise ValueError(
                f"all images must have one size: {file} has {came[1]} x {came[0]} pixels, {files[0]} has "
                f"{first[1]} x {first[0]}; crop or resize them first"
            )
    kinds = {picture.kind: file for picture, file in zip(pictures, files, strict=True)}
    if len(kinds) > 1 and not set(kinds) <= set(_KINDS):
        one, other = list(kinds)[:2]
        raise ValueError(f"all images must be of one kind: {kinds[one]} is {one}, {kinds[other]} is {other}")
    kind = max(kinds, key=lambda name: _KINDS.get(name, 0))
    conversions = Counter(name for picture in pictures for name in picture.conversions)
    if len(kinds) > 1:
        conversions[f"are turned into {kind}"] = sum(picture.kind != kind for picture in pictures)
    for name, count in conversions.items():
        warn(f"{folder}: {count:,} of {len(files):,} images {name}")
    return np.stack([_as_kind(picture, kind) for picture in pictures])


def _picture(file: Path) -> _Picture:
    with readable(file), _no_bombs(), Image.open(file, formats=_FORMATS) as image:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # an MPO's are thumbnails
        _refuse_deep_colours(image)
        picture = _read_pixels(ImageOps.exif_transpose(image))
    several = ("have several frames, of which the first is taken",) if frames > 1 else ()
    return picture._replace(conversions=picture.conversions + several)


@contextmanager
def _no_bombs() -> Iterator[None]:
    """Refuse headers of more than 89 million pixels, of which Pillow only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _refuse_deep_colours(image: ImageFile.ImageFile) -> None:
    """Refuse images that Pillow would silently read as 8 bits."""
    if image.mode[0] not in "IF" and any(";16" in str(tile[3]) for tile in image.tile):
        raise ValueError(
            "its colours have 16 bits, of which 8 would be lost: save it with 8, or the pixels as a .npy of uint16"
        )


def _read_pixels(image: Image.Image) -> _Picture:
    conversions: tuple[str, ...] = ()
    if image.mode.startswith("I"):
        return _Picture(np.asarray(image), "grey of 16 bits", conversions)
    if image.mode == "F":
        return _Picture(np.asarray(image), "floats", conversions)
    if image.mode == "1":
        return _Picture(np.asarray(image.convert("L")) > 0, "bilevel", conversions)
    grey = image.mode in _GREY
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            conversions = ("have transparent parts, which are laid on white",)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    return _Picture(np.asarray(image.convert("L" if grey else "RGB")), "grey" if grey else "colour", conversions)


def _as_kind(picture: _Picture, kind: str) -> Array:
    """Return the pixels as a kind at least as large, with the channels first."""
    pixels = picture.pixels
    if picture.kind == "bilevel" and kind != "bilevel":
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.ndim == 3:
        return pixels.transpose(2, 0, 1)
    return np.broadcast_to(pixels, (3 if kind == "colour" else 1, *pixels.shape))
