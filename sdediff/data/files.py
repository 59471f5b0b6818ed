"""Data from files: NumPy arrays and folders of images, checked before anything is learned from them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sdediff.data.dataset import Dataset, split
from sdediff.types import DataInfo

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_MOST_LEVELS = 1 << 16


def load_file(path: Path, seed: int = 0) -> Dataset:
    """A ``.npy``, a ``.npz`` or a folder of images of one size.

    An ``.npz`` is read as ``x_train`` and, if present, ``x_test`` (else a fifth is held out), or as ``data`` or its
    only array. Arrays are ``(n, *shape)``. Integers are levels ``0 .. K - 1`` (bytes always 256), placed on [-1, 1];
    floats are taken as they are. Channels-last images are turned to ``(C, H, W)``.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it cannot be read or used, in one line.
    """
    return _held_out(_read(path), path, seed)


def load_items(path: Path, names: Sequence[str] = ("x_test", "data")) -> Tensor:
    """All items of a file or folder, unsplit and in their order; ``names`` are the arrays to look for, in order.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it cannot be read or used, in one line.
    """
    arrays = _read(path)
    name = next((name for name in names if name in arrays), next(iter(arrays)) if len(arrays) == 1 else None)
    if name is None:
        raise ValueError(f"{path} must hold one array, or {' or '.join(names)}; it holds {', '.join(arrays) or 'none'}")
    return _checked(arrays[name], path)


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if path.is_dir():
        return {"data": _images(path)}
    if not path.is_file():
        raise FileNotFoundError(f"no data at {path}")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"{path}: data files are .npy, .npz or a folder of images")
    return _arrays(path)


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file:  # closed even where NumPy gives up half way
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else {"data": loaded}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = (
            "no NumPy file, or one of pickled objects" if "pickle" in str(error).lower() else str(error).splitlines()[0]
        )
        raise ValueError(f"{path} cannot be read: {reason}") from None
    return arrays


def _images(folder: Path) -> NDArray[np.generic]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
                images.append(np.asarray(image.convert("L" if grey else "RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} is no readable image: {error}") from None
        if images[-1].shape != images[0].shape:
            came, first = images[-1].shape, images[0].shape
            raise ValueError(f"all images must have one size and kind: {file} has {came}, {files[0]} has {first}")
    stacked = np.stack(images)
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)


def _held_out(arrays: dict[str, NDArray[np.generic]], path: Path, seed: int) -> Dataset:
    """Pick the arrays that are the data, check them, and split."""
    if "x_train" not in arrays:
        if "data" not in arrays and len(arrays) != 1:
            names = ", ".join(arrays) or "none"
            raise ValueError(f"{path} must hold x_train (and x_test), or data, or one array; it holds {names}")
        data = _checked(arrays.get("data", next(iter(arrays.values()))), path)
        return split(data, _info(data, path), seed)
    train = _checked(arrays["x_train"], path)
    if "x_test" not in arrays:
        return split(train, _info(train, path), seed)
    held_out = _checked(arrays["x_test"], path)
    if held_out.shape[1:] != train.shape[1:] or held_out.dtype != train.dtype:
        raise ValueError(
            f"{path}: x_train and x_test differ in kind: {tuple(train.shape)} {train.dtype}, "
            f"{tuple(held_out.shape)} {held_out.dtype}"
        )
    return Dataset(train, held_out, _info(torch.cat([train, held_out]), path))


def _checked(array: NDArray[np.generic], path: Path) -> Tensor:
    """The array as int64 levels or float32, channels first."""
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{path}: data must be an array (n, ...) with at least one item, not shape {array.shape}")
    bytes_ = array.dtype == np.uint8
    if array.dtype.kind in "biu":
        data = torch.from_numpy(array.astype(np.int64))
        if int(data.min()) < 0 or int(data.max()) >= _MOST_LEVELS:
            low, high = int(data.min()), int(data.max())
            raise ValueError(f"{path}: integer data are levels 0 .. {_MOST_LEVELS - 1}; came {low} to {high}")
    elif array.dtype.kind == "f":
        data = torch.from_numpy(array.astype(np.float32))
        if not bool(data.isfinite().all()):
            count = int((~data.isfinite()).sum())
            raise ValueError(f"{path}: {count} of {data.numel()} entries are NaN or infinite")
    else:
        raise ValueError(f"{path}: data must be integers or floats, not {array.dtype}")
    if data.ndim == 4 and data.shape[-1] in (1, 3, 4) and data.shape[1] not in (1, 3, 4):
        data = data.permute(0, 3, 1, 2).contiguous()
    elif data.ndim == 3 and min(data.shape[1:]) >= 4:
        data = data[:, None]  # grey images without a channel axis
    return data.to(torch.uint8) if bytes_ else data


def _info(data: Tensor, path: Path) -> DataInfo:
    levels = None
    if not data.is_floating_point():
        levels = 256 if data.dtype == torch.uint8 else max(2, int(data.max()) + 1)
    return DataInfo(shape=tuple(data.shape[1:]), levels=levels, name=path.stem or str(path))
