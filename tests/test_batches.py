"""Batches: what each process draws, the thread that gathers ahead, mirrored images, and the held-out items of a run."""

import math
from threading import get_ident

import numpy as np
import pytest
import torch

import sdediff
from sdediff.config import Config
from sdediff.data import load_dataset, to_levels
from sdediff.data.held_out import HELD_OUT
from sdediff.noise import NoiseSource
from sdediff.training import batches as batches_module
from sdediff.training import train
from sdediff.training.batches import Batches
from sdediff.types import DataInfo


def test_a_share_is_drawn_without_the_others(monkeypatch):
    """A process draws as many numbers as its own items have entries, twice: noise and dequantisation; and two numbers
    an item of the whole batch, for the order and the place of the levels."""
    drawn = {"normal": [], "uniform": []}
    for name, seen in drawn.items():
        own = getattr(NoiseSource, name)
        monkeypatch.setattr(
            NoiseSource, name, lambda s, *args, own=own, seen=seen: seen.append(math.prod(s.shape)) or own(s, *args)
        )
    data = torch.randint(0, 17, (40, 5), generator=torch.Generator().manual_seed(0))
    Batches(data, DataInfo((5,), levels=17), 12, seed=3, rank=2, world=4)(5)
    assert drawn == {"normal": [15], "uniform": [15, 24]}


def test_large_sets_are_gathered_ahead_by_a_thread(monkeypatch):
    """The same batches in any order of the steps; each but the first is gathered before it is asked for."""
    data, info = load_dataset("digits").train, load_dataset("digits").info
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    units = DataInfo((3,), shift=(1.0, 2.0, 3.0), scale=(0.5, 1.0, 2.0))
    steps = [0, 1, 2, 7, 8, 3, 3]
    for x, what in ((data, info), (rows, units)):
        expected = [Batches(x, what, 12, seed=3)(step) for step in steps]
        with monkeypatch.context() as patched:
            patched.setattr(batches_module, "ON_DEVICE", 0)
            ahead = Batches(x, what, 12, seed=3)
            gathered = []
            gather = ahead._gather
            patched.setattr(ahead, "_gather", lambda s, g=gather, seen=gathered: seen.append((s, get_ident())) or g(s))
            found = [ahead(step) for step in steps]
        assert ahead._thread is not None
        ahead._thread.shutdown()
        assert get_ident() not in {thread for _, thread in gathered}
        assert [step for step, _ in gathered] == [0, 1, 2, 3, 7, 8, 9, 3, 4, 3, 4]
        for batch, other in zip(found, expected, strict=True):
            assert all(torch.equal(*pair) for pair in zip(batch, other, strict=True))


def test_half_of_the_images_are_mirrored_by_the_seed():
    """Every image is itself or its mirror image; of 2,000, half are, to five standard errors; other processes agree."""
    x = torch.arange(6).reshape(1, 1, 2, 3).repeat(2000, 1, 1, 1)
    info = DataInfo((1, 2, 3), levels=6)
    plain, flipped = (Batches(x, info, 2000, seed=1, flips=flips)(0) for flips in (False, True))
    levels = to_levels(flipped.x0.double(), info)
    mirrored = (levels == x.flip(-1)).flatten(1).all(1)
    assert bool((mirrored ^ (levels == x).flatten(1).all(1)).all())
    assert abs(int(mirrored.sum()) - 1000) < 5 * math.sqrt(500)
    assert torch.equal(flipped.eps, plain.eps)
    share = Batches(x, info, 2000, seed=1, flips=True, rank=1, world=2)(0)
    assert torch.equal(share.x0, flipped.x0[1000:])
    again = to_levels(Batches(x, info, 2000, seed=1, flips=True)(4).x0, info)
    assert not torch.equal((again == x.flip(-1)).flatten(1).all(1), mirrored)
    with pytest.raises(ValueError, match=r"only images \(C, H, W\) are mirrored"):
        Batches(x[:, 0, 0], DataInfo((3,), levels=6), 8, seed=1, flips=True)


def test_a_run_stores_what_it_held_out_and_refuses_other_data(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    small = {"network.width": 8, "training.batch_size": 16, "training.sample_every": 0, "training.steps": 2}
    small |= {"training.schedule": "constant"}  # which an extended run keeps
    config = Config().updated({**small, "data.name": str(tmp_path / "x.npy")})
    train(config, tmp_path / "run", progress=False)
    assert (
        np.load(tmp_path / "run" / HELD_OUT)["ids"].tolist() == load_dataset(tmp_path / "x.npy").held_out_ids.tolist()
    )
    np.save(tmp_path / "x.npy", rows[:-1])
    longer = config.updated({"training.steps": 3})
    with pytest.raises(ValueError, match=r"the data have changed since the run in .* held out a part of them"):
        train(longer, tmp_path / "run", resume=True, progress=False)
    np.save(tmp_path / "x.npy", rows)
    assert train(longer, tmp_path / "run", resume=True, progress=False).steps == 3


def test_a_resumed_run_refuses_other_tensors_of_the_same_shape(tmp_path):
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    small = {"network.width": 8, "batch_size": 16, "sample_every": 0, "schedule": "constant", "device": "cpu"}
    labels = torch.arange(60) % 3
    sdediff.train(x, run=tmp_path, condition=labels, steps=2, progress=False, **small)
    for items, told in ((x + (torch.arange(60) == 7)[:, None], labels), (x, labels.roll(1))):
        with pytest.raises(ValueError, match="the data have changed since the run"):
            sdediff.train(items, run=tmp_path, condition=told, steps=3, resume=True, progress=False, **small)
    run = sdediff.train(x.clone(), run=tmp_path, condition=labels, steps=3, resume=True, progress=False, **small)
    assert run.steps == 3
