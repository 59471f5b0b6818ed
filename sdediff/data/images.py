"""Images from files, as every viewer shows them, without loss.

An image is turned as its EXIF orientation says, palettes become their colours, and transparent parts are laid on white.
Bytes have 256 levels and bilevel images 2; 16-bit and float images keep their values, and colours of 16 bits, which
Pillow reads as 8, are refused. With a size, the square in the middle is brought to it by cubic interpolation, whose
kernel covers the area of a new pixel, so that nothing is aliased; large JPEG are decoded at a half, a quarter or an
eighth of their size to begin with.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sdediff.data.arrays import Array, readable
from sdediff.data.remarks import warn
from sdediff.extras import extra

with extra("plots", "images need"):
    from PIL import Image, ImageFile, ImageOps

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # no others, whatever a file is called
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_GREY = ("L", "LA", "La")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # a tag of EXIF, and its values that exchange the sides

_SPARE = 3  # JPEG is decoded at no less than so many times the size that it is brought to


class Kind(NamedTuple):
    """A kind of pixels: their type, and a rank; a kind converts to those of higher rank without loss."""

    dtype: DTypeLike
    rank: int | None


KINDS = {
    "bilevel": Kind(np.bool_, 1),
    "grey": Kind(np.uint8, 2),
    "colour": Kind(np.uint8, 3),
    "grey of 16 bits": Kind(np.uint16, None),
    "grey of 32 bits": Kind(np.int32, None),
    "floats": Kind(np.float32, None),
}


class Header(NamedTuple):
    """Height and width of an image as it is shown, and the name of its kind."""

    shape: tuple[int, int]
    kind: str


def read_header(file: Path) -> Header:
    """Read size and kind of an image, without decoding it.

    Raises:
        ValueError: if it is damaged, or of a kind that cannot be read without loss.
    """
    with readable(file), Image.open(file, formats=_FORMATS) as image:
        return header_of(image)


def common_kind(kinds: Mapping[str, object], size: int | None) -> str:
    """Return the kind that holds images of several kinds without loss.

    Args:
        kinds: the name of one image of each kind.
        size: side to which images are resized, if they are.

    Raises:
        ValueError: if the kinds do not go together.
    """
    alone = next((kind for kind in kinds if KINDS[kind].rank is None), None)
    if len(kinds) > 1 and alone is not None:
        other = next(kind for kind in kinds if kind != alone)
        raise ValueError(
            f"all images must be of one kind: {kinds[other]} is {other}, {kinds[alone]} is {alone}; "
            "train on one kind, or save all with 8 bits"
        )
    kind = max(kinds, key=lambda name: KINDS[name].rank or 0)
    return "grey" if kind == "bilevel" and size is not None else kind  # resized, it has more than two levels


def warn_of_conversions(where: str, count: int, conversions: Iterable[tuple[str, ...]]) -> None:
    """Warn once of each lossy conversion, with the number of images it was applied to."""
    for name, times in Counter(name for each in conversions for name in each).items():
        warn(f"{where}: {times:,} of {count:,} images {name}")


def decode(file: Path, kind: str, size: int | None) -> tuple[Array, tuple[str, ...]]:
    """Read the pixels of an image as a kind, ``(C, H, W)``, and the lossy conversions applied to them.

    Raises:
        ValueError: if it is damaged.
    """
    with readable(file), Image.open(file, formats=_FORMATS) as image:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # an MPO's are thumbnails
        if size is not None:  # JPEG at 1/2, 1/4 or 1/8, as means of its blocks: a fraction of the work
            image.draft(None, (_SPARE * size, _SPARE * size))
        pixels, conversions = pixels_of(image, kind, size)
    return pixels, conversions + ("have several frames, of which the first is taken",) * (frames > 1)


@contextmanager
def no_bombs() -> Iterator[None]:
    """Refuse headers of more than 89 million pixels, of which Pillow only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def header_of(image: Image.Image) -> Header:
    """Return size and kind of an image that is opened.

    Raises:
        ValueError: for colours of 16 bits, which Pillow would silently read as 8.
    """
    deep = isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile[3]) for tile in image.tile)
    if image.mode[0] not in "IF" and deep:
        raise ValueError(
            "its colours have 16 bits, of which 8 would be lost: save it with 8, or the pixels as a .npy of uint16"
        )
    width, height = image.size
    turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED  # Pillow turns TIFF's own sizes
    return Header((width, height) if turned else (height, width), _kind(image.mode))


def _kind(mode: str) -> str:
    if mode.startswith("I"):
        return "grey of 32 bits" if mode == "I" else "grey of 16 bits"
    return {"F": "floats", "1": "bilevel"}.get(mode, "grey" if mode in _GREY else "colour")


def pixels_of(image: Image.Image, kind: str, size: int | None) -> tuple[Array, tuple[str, ...]]:
    """Return an opened image as pixels ``(C, H, W)`` of a kind, and the lossy conversions applied to them."""
    (shape, own), turned = header_of(image), ImageOps.exif_transpose(image)
    conversions: tuple[str, ...] = ()
    if turned.size[::-1] != shape:  # some releases of Pillow garble some TIFF
        raise ValueError("it cannot be turned as its orientation says: save it upright")
    if own == "bilevel":
        turned = turned.convert("L")
    elif own in ("grey", "colour"):
        turned, conversions = _opaque(turned, "L" if own == "grey" else "RGB")
    if size is not None:
        conversions += ("are smaller than the size, and enlarged",) * (min(turned.size) < size)
        turned = _resized(turned, size)
    pixels: NDArray[Any] = np.asarray(turned)
    if kind == "bilevel":
        pixels = pixels > 0
    if KINDS[kind].rank is None and size is not None and kind != "floats":
        pixels = pixels.round().clip(0, None).astype(KINDS[kind].dtype)
    if own != kind:
        conversions += (f"are turned into {kind}",)
    if pixels.ndim == 3:
        return pixels.transpose(2, 0, 1), conversions
    return np.broadcast_to(pixels, (3 if kind == "colour" else 1, *pixels.shape)), conversions


def _opaque(image: Image.Image, mode: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an image without transparency, laid on white where it was transparent."""
    conversions: tuple[str, ...] = ()
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            conversions = ("have transparent parts, which are laid on white",)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    return image.convert(mode), conversions


def _resized(image: Image.Image, size: int) -> Image.Image:
    """Crop the square in the middle and resize it; 16-bit pixels become floats, which Pillow can resize."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.asarray(image).astype(np.float32))
    width, height = image.size
    side = min(width, height)
    left, top = 0.5 * (width - side), 0.5 * (height - side)
    return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
