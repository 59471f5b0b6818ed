"""Sets beyond memory: the same items, labels and names, in files without names."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff.data import load_dataset, storage

RNG = np.random.default_rng(0)


def everything(data):
    return [
        data.train,
        data.held_out,
        data.info,
        data.train_labels,
        data.train_ids.tolist(),
        data.held_out_ids.tolist(),
    ]


def same(a, b):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i8", "f4", "f8", ">f8", "?"])
@pytest.mark.parametrize("part", [1, 100, 1 << 24])
def test_large_arrays_are_read_as_small_ones(tmp_path, monkeypatch, dtype, part):
    x = (RNG.random((50, 6, 7, 3)) * 5).astype(dtype)
    np.savez(tmp_path / "x.npz", data=x, labels=np.arange(50))
    np.save(tmp_path / "x.npy", x)
    small = [everything(load_dataset(tmp_path / name)) for name in ("x.npz", "x.npy")]
    made = []
    make = storage.np.memmap
    monkeypatch.setattr(storage, "IN_MEMORY", 100)
    monkeypatch.setattr(storage, "_AT_A_TIME", part)
    monkeypatch.setattr(storage.np, "memmap", lambda *args, **kw: made.append(make(*args, **kw)) or made[-1])
    large = [everything(load_dataset(tmp_path / name)) for name in ("x.npz", "x.npy")]
    assert all(map(same, small, large))
    assert all(part.is_contiguous() for data in large for part in data[:2])
    assert len(made) >= 4  # both parts of both


def test_many_images_are_decoded_into_a_file(tmp_path, monkeypatch):
    pixels = RNG.integers(0, 256, (10, 5, 7, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    before = everything(load_dataset(tmp_path))
    monkeypatch.setattr(storage, "IN_MEMORY", 10)
    assert isinstance(storage.empty((5, 7), np.uint8), np.memmap)
    assert same(before, everything(load_dataset(tmp_path)))


def test_a_full_disk_is_said_before_the_work(monkeypatch):
    with pytest.raises(OSError, match=r"bytes of data do not fit into .*; TMPDIR names another folder"):
        storage.empty((1 << 30, 1 << 30), np.uint8)
