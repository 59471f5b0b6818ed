"""Data: levels and values, the hold-out, the toys' laws, files good and bad."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff.data import DATASETS, TOYS, bin_width, load_dataset, to_levels, to_values
from sdediff.data.entries import as_items
from sdediff.data.toy import POINTS
from sdediff.types import DataInfo

INFO = DataInfo(shape=(3,), levels=17)


# ---- levels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "low", "high"), [(17, -1.0, 1.0), (256, -1.0, 1.0), (2, 0.0, 1.0), (5, -3.0, 2.5)])
def test_levels_and_values_are_inverse(levels, low, high):
    info = DataInfo(shape=(levels,), levels=levels, low=low, high=high)
    x = torch.arange(levels)[None]
    values = to_values(x, info, dtype=torch.float64)
    assert float(values[0, 0]) == low
    assert math.isclose(float(values[0, -1]), high, rel_tol=1e-15)
    assert torch.allclose(values.diff(), torch.full((levels - 1,), bin_width(info), dtype=torch.float64), rtol=1e-12)
    assert torch.equal(to_levels(values, info), x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):  # wherever in its bin, a dequantised entry goes back to its level
        u = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        noisy = to_values(x, info, u)
        assert torch.equal(to_levels(noisy, info), x)
        assert torch.allclose(noisy - values, bin_width(info) * (u - 0.5), atol=1e-14 * (abs(low) + abs(high)))


def test_values_outside_the_range_are_clamped():
    assert to_levels(torch.tensor([-9.0, -1.07, 1.07, 9.0]), INFO).tolist() == [0, 0, 16, 16]


@pytest.mark.parametrize(
    ("x", "info", "message"),
    [
        (torch.tensor([1.5]), INFO, "integers"),
        (torch.tensor([17]), INFO, r"0 \.\. 16; came 17"),
        (torch.tensor([-1]), INFO, "came -1"),
        (torch.tensor([0]), DataInfo(shape=(1,), name="moons"), "continuous"),
    ],
)
def test_what_is_no_level_is_refused(x, info, message):
    with pytest.raises(ValueError, match=message):
        to_values(x, info)


# ---- digits ----------------------------------------------------------------------------------------------------


def test_digits_are_split_by_class():
    data = load_dataset("digits")
    assert (data.train.shape, data.held_out.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert data.info == DataInfo(shape=(1, 8, 8), levels=17, name="digits")
    counts = torch.bincount(data.held_out_labels), torch.bincount(data.train_labels)
    share = counts[0] / (counts[0] + counts[1])
    assert float((share - 360 / 1797).abs().max()) * float((counts[0] + counts[1]).max()) <= 1.0  # to one digit a class
    # nothing is lost and nothing is in both: the two parts are the 1,797 scans
    everything = torch.cat([data.train, data.held_out]).flatten(1)
    from sklearn.datasets import load_digits

    source = torch.from_numpy(load_digits().data).long()
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, source.tolist()))


def test_the_seed_chooses_the_hold_out():
    first, again, other = (load_dataset("digits", seed) for seed in (0, 0, 1))
    assert torch.equal(first.held_out, again.held_out)
    assert torch.equal(first.train_labels, again.train_labels)
    assert not torch.equal(first.held_out, other.held_out)


# ---- toys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_seeded_and_of_unit_size(name):
    data = load_dataset(name, 3)
    assert len(data.train) + len(data.held_out) == POINTS
    assert data.train.dtype == torch.float32
    assert data.info == DataInfo(shape=(2,), name=name)
    assert torch.equal(data.train, load_dataset(name, 3).train)
    assert not torch.equal(data.train, load_dataset(name, 4).train)
    assert 0.3 < float(data.train.std()) < 0.9
    # Train and hold-out are one distribution: 20 coordinates' Kolmogorov distances, two-sample critical value at 1e-6.
    critical = math.sqrt(0.5 * math.log(2.0 / 1e-6) * (1.0 / len(data.train) + 1.0 / len(data.held_out)))
    for angle in torch.arange(20) * (math.pi / 20):
        direction = torch.tensor([math.cos(angle), math.sin(angle)])
        assert kolmogorov(data.train @ direction, data.held_out @ direction) < critical
    shifted = data.held_out + 0.1
    assert kolmogorov(data.train[:, 0], shifted[:, 0]) > critical


def kolmogorov(a, b):
    """Largest distance between two empirical distribution functions."""
    where = torch.cat([a, b]).sort().values
    share = [torch.searchsorted(part.sort().values, where, right=True) / len(part) for part in (a, b)]
    return float((share[0] - share[1]).abs().max())


def test_the_ring_has_eight_equal_gaussians():
    x = torch.cat([load_dataset("ring").train, load_dataset("ring").held_out]).double()
    centres = torch.stack([torch.cos(torch.arange(8) * math.pi / 4), torch.sin(torch.arange(8) * math.pi / 4)], 1)
    nearest = torch.cdist(x, centres.double()).min(dim=1)
    counts = torch.bincount(nearest.indices, minlength=8)
    # chi-square with 7 degrees of freedom exceeds 45 with probability 1.4e-7
    assert float(((counts - POINTS / 8) ** 2).sum() / (POINTS / 8)) < 45.0
    # 2 * 20000 squared normals of variance 0.01: 6 standard errors (cells cut 1e-4 of the mass, less than one of them)
    assert abs(float(nearest.values.square().mean()) / 0.02 - 1.0) < 6.0 / math.sqrt(POINTS)


def test_the_checkerboard_is_uniform_on_its_dark_squares():
    x = load_dataset("checkerboard").train.double()
    cell = ((x + 1.0) * 2.0).floor().long().clamp(0, 3)
    assert bool(((cell[:, 0] + cell[:, 1]) % 2 == 0).all())
    counts = torch.bincount(4 * cell[:, 1] + cell[:, 0], minlength=16)
    expected = len(x) / 8
    assert int((counts > 0).sum()) == 8
    assert float(((counts[counts > 0] - expected) ** 2).sum() / expected) < 45.0


# ---- files -----------------------------------------------------------------------------------------------------


def test_integer_arrays_stay_integers(tmp_path):
    x = np.random.default_rng(0).integers(0, 7, (50, 1, 6, 6))
    x[0, 0, 0, 0] = 6
    np.save(tmp_path / "a.npy", x)
    data = load_dataset(tmp_path / "a.npy", seed=2)
    assert data.info == DataInfo(shape=(1, 6, 6), levels=7, name="a")
    assert len(data.held_out) == 10
    rows = torch.cat([data.train, data.held_out]).reshape(50, -1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, x.reshape(50, -1).tolist()))


def test_bytes_have_256_levels_and_channels_come_first(tmp_path):
    x = np.random.default_rng(0).integers(0, 100, (10, 8, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x[:7], x_test=x[7:])
    data = load_dataset(str(tmp_path / "a.npz"))
    assert data.info == DataInfo(shape=(3, 8, 6), levels=256, name="a")
    assert torch.equal(data.train, torch.from_numpy(x[:7].transpose(0, 3, 1, 2)))
    assert torch.equal(data.held_out, torch.from_numpy(x[7:].transpose(0, 3, 1, 2)))


def test_grey_images_without_channels_get_one_and_floats_are_taken_as_they_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 8, 8))
    np.savez(tmp_path / "a.npz", labels=np.arange(5), data=x)
    data = load_dataset(tmp_path / "a.npz")
    assert data.info == DataInfo(shape=(1, 8, 8), name="a")
    assert set(torch.cat([data.train, data.held_out])[:, 0, 0, 0].tolist()) == set(np.float32(x[:, 0, 0]).tolist())


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_images(tmp_path, mode, channels):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (5, 7) if channels == 1 else (5, 7, 3), dtype=np.uint8) for _ in range(4)]
    for i, image in enumerate(pixels):
        Image.fromarray(image, mode=None).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_dataset(tmp_path)
    assert data.info.shape == (channels, 5, 7)
    assert data.info.levels == 256
    came = {x.numpy().tobytes() for x in torch.cat([data.train, data.held_out])}
    assert came == {np.ascontiguousarray(p.reshape(5, 7, channels).transpose(2, 0, 1)).tobytes() for p in pixels}


def bad_arrays():
    nan = np.zeros((4, 2))
    nan[1, 1] = np.nan
    return {
        "1 of 8 values are missing, in 1 of 4 items": nan,
        "6 of 6 entries are infinite": np.full((3, 2), np.inf),
        "pickled": np.array([[1, None], [2, 3]], dtype=object),
        "integers or floats, not complex": np.zeros((3, 2), dtype=complex),
        "came -1 to 3": np.array([[-1, 3]]),
        r"\(n, ...\)": np.zeros(5),
        "at least one item": np.zeros((0, 4)),
        "at least 2 items": np.zeros((1, 4)),
    }


@pytest.mark.parametrize("message", bad_arrays())
def test_bad_arrays_are_refused_in_one_line(tmp_path, message):
    np.save(tmp_path / "bad.npy", bad_arrays()[message], allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path / "bad.npy")
    assert "\n" not in str(caught.value)


def test_missing_values_are_kept_on_request_only():
    x = np.array([[1.0, np.nan], [np.inf, 2.0]])
    for gaps, message in ((False, "2 of 4 entries are NaN, infinite"), (True, "1 of 4 entries are infinite")):
        with pytest.raises(ValueError, match=message):
            as_items(x, "x", gaps=gaps)
    assert as_items(x[:1], "x", gaps=True).isnan().tolist() == [[False, True]]


def test_bad_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.npy").write_bytes(b"no array at all")
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "junk").write_bytes(b"no data at all")
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 2)), b=np.zeros((3, 2)))
    np.savez(tmp_path / "kinds.npz", x_train=np.zeros((3, 2)), x_test=np.zeros((3, 3)))
    (tmp_path / "ragged").mkdir()
    for name, size in (("a", 4), ("b", 5)):
        Image.fromarray(np.zeros((size, 4), dtype=np.uint8)).save(tmp_path / "ragged" / f"{name}.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"not a picture")
    cases = {
        "empty": "holds no images",
        "junk.npy": "cannot be read",
        "junk.npz": "cannot be read",
        "table.csv": "at least 2 items",
        "junk": "data are .npy, .npz, .csv",
        "two.npz": "it holds a, b",
        "kinds.npz": "differ in kind",
        "ragged": "one size",
        "broken": "cannot be read",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_dataset(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="digits, moons") as caught:
        load_dataset("no-such-data")
    assert all(name in str(caught.value) for name in DATASETS)
