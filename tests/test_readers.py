"""Readers of arrays: types, layouts and labels are kept, memory is spared, and damage is one line."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sdediff
from sdediff import numerics
from sdediff.cli import main
from sdediff.cli.console import Console
from sdediff.cli.items import read_items
from sdediff.cli.runs import open_run
from sdediff.data import LAYOUTS, Reading, load_dataset, to_values
from sdediff.data.files import load_items
from sdediff.data.layout import AUTO
from sdediff.data.levels import extremes
from sdediff.gaussian import Moments
from sdediff.likelihood.discrete.decoder import DECODERS
from sdediff.likelihood.discrete.dequantization import DEQUANTISATIONS
from sdediff.training.batches import Batches
from sdediff.types import DataInfo

INTEGERS = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64
]  # fmt: skip

CHAIN = sdediff.DDPM.linear(1000)
MODEL = sdediff.analytic.GaussianMixture(means=[[-0.5, 0.0, 0.3]], covariances=[0.1]).model(CHAIN)
INFO = DataInfo((3,), 17)
LEVELS = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0]])  # what every type holds, booleans too

VERBS = {
    **{
        f"bits_per_dim, {name}": lambda x, name=name: (
            sdediff.bits_per_dim(MODEL, x, levels=17, dequantisation=name, steps=4).bits_per_dim
        )
        for name in DEQUANTISATIONS
    },
    "log_likelihood": lambda x: sdediff.log_likelihood(MODEL, x, data=INFO, steps=4).log_prob,
    **{
        f"elbo, {name}": lambda x, name=name: sdediff.elbo(MODEL, x, data=INFO, decoder=name, steps=5).total
        for name in DECODERS
    },
    "to_values": lambda x: to_values(x, INFO),
    "extremes": lambda x: torch.tensor(extremes(x)),
    "batches": lambda x: Batches(x, INFO, 2, seed=0)(3).x0,
    "moments": lambda x: Moments.fit(x).variances,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_type_gives_the_same(verb, dtype):
    assert torch.equal(VERBS[verb](LEVELS.to(dtype)), VERBS[verb](LEVELS))


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "i8", "u2", "u4", "u8", ">u2", ">i4", "?"])
def test_integers_stay_as_small_as_they_are(tmp_path, dtype):
    x = (np.arange(60).reshape(20, 3) % 2).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    data = load_dataset(tmp_path / "x.npy")
    assert data.train.element_size() == x.dtype.itemsize
    assert data.info.levels == (256 if dtype == "u1" else 2)
    rows = torch.cat([data.train, data.held_out]).tolist()
    assert sorted(rows) == sorted(x.astype(int).tolist())


def test_the_whole_range_of_16_bits_is_kept(tmp_path):
    x = np.array([[0, 65535], [32768, 1]], dtype=np.uint16)
    np.savez(tmp_path / "x.npz", data=x)
    items = load_items(tmp_path / "x.npz").x
    assert (items.dtype, items.tolist()) == (torch.uint16, x.tolist())
    data = load_dataset(tmp_path / "x.npz")
    assert data.info.levels == 65536
    assert torch.allclose(to_values(items, data.info, dtype=torch.float64)[0], torch.tensor([-1.0, 1.0]).double())
    np.save(tmp_path / "y.npy", x.astype(np.int32) + 1)
    with pytest.raises(ValueError, match=r"0 \.\. 65535; came 1 to 65536"):
        load_dataset(tmp_path / "y.npy")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8"])
def test_floats_keep_their_values_in_single_precision(tmp_path, dtype):
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    assert np.array_equal(load_items(tmp_path / "x.npy").x.numpy(), x.astype(np.float32))
    if dtype == "f8":
        np.save(tmp_path / "x.npy", x * 1e300)
        with pytest.raises(ValueError, match=r"infinite|beyond single precision"):
            load_items(tmp_path / "x.npy")


@pytest.mark.parametrize("covariance", ["auto", "diagonal"])
@pytest.mark.parametrize("part", [1, 20, 1 << 20])
def test_moments_are_those_of_all_parts_together(monkeypatch, part, covariance):
    monkeypatch.setattr(numerics, "PART", part)
    x = np.random.default_rng(0).integers(0, 256, (50, 2, 3), dtype=np.uint8)
    moments, flat = Moments.fit(torch.from_numpy(x), covariance=covariance), x.reshape(50, 6).astype(float)
    expected = np.cov(flat.T, bias=True)
    basis = torch.eye(6).double() if moments.basis is None else moments.basis
    assert np.allclose(moments.mean.reshape(-1), flat.mean(0), rtol=1e-12)
    found = (basis * moments.variances @ basis.T).numpy()
    assert np.allclose(found, expected if covariance == "auto" else np.diag(np.diag(expected)), rtol=0.0, atol=1e-9)


# ---- layouts -----------------------------------------------------------------------------------------------------

SIZES = {"C": 3, "L": 7, "D": 5, "H": 6, "W": 8}


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != AUTO])
def test_every_layout_comes_channels_first(tmp_path, layout, floats):
    space = layout.replace("C", "")
    channels = SIZES["C"] if "C" in layout else 1
    x = np.arange(10 * channels * np.prod([SIZES[a] for a in space])).reshape(10, channels, *(SIZES[a] for a in space))
    x = np.float32(x / x.size) if floats else x
    stored = np.moveaxis(x, 1, 1 + layout.index("C")) if "C" in layout else x[:, 0]
    np.save(tmp_path / "x.npy", stored)
    assert np.array_equal(load_items(tmp_path / "x.npy", reading=Reading(layout=layout)).x.numpy(), x)
    assert load_dataset(tmp_path / "x.npy", layout=layout).info.shape == x.shape[1:]


@pytest.mark.filterwarnings("ignore::sdediff.data.DataWarning")
@pytest.mark.parametrize(
    ("item", "floats", "shape"),
    [
        ((5,), True, "rows of 5 columns"),
        ((2, 128), True, "series 2x128, 2 channels"),
        ((28, 28), True, "images 1x28x28, grey"),
        ((28, 20), False, "images 1x28x20, grey"),
        ((128, 12), True, None),
        ((128, 2), True, None),
        ((128, 2), False, None),
        ((3, 8, 6), True, "images 3x8x6, colour"),
        ((8, 6, 3), False, "images 3x8x6, colour"),
        ((8, 8, 2), True, "images 2x8x8, 2 channels"),
        ((1, 4, 4), True, "images 1x4x4, grey"),
        ((16, 16, 16), True, None),
        ((1, 6, 6, 6), True, "volumes 1x6x6x6, 1 channel"),
        ((6, 6, 6, 2), True, "volumes 2x6x6x6, 2 channels"),
        ((6, 6, 6, 6), True, None),
    ],
)
def test_a_shape_is_taken_for_the_one_thing_it_can_be(tmp_path, item, floats, shape):
    x = np.random.default_rng(0).integers(0, 9, (10, *item))
    x[0] = 8
    np.save(tmp_path / "x.npy", x + 0.5 if floats else x)
    if shape is None:
        with pytest.raises(ValueError, match=r"can mean several things; say which by data\.layout, one of: ") as caught:
            load_dataset(tmp_path / "x.npy")
        assert "\n" not in str(caught.value)
        return
    data = load_dataset(tmp_path / "x.npy")
    inside = "; columns standardised inside" * (len(item) == 1)
    assert str(data) == f"8 {shape}, {'continuous' if floats else '9 levels'}; 2 held out{inside}"


def test_a_layout_of_other_axes_is_refused_and_known_shapes_stay(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", samples=x)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"'CHW' has 3 axes, the items \(5, 6\) have 2"):
        load_items(tmp_path / "x.npy", reading=Reading(layout="CHW"))
    with pytest.raises(ValueError, match="unknown layout 'NCHW'"):
        load_items(tmp_path / "x.npy", reading=Reading(layout="NCHW"))
    assert np.array_equal(load_items(tmp_path / "x.npy", shape=(5, 6)).x, x)
    assert np.array_equal(
        load_items(tmp_path / "x.npz", ("samples",), reading=Reading(layout="LC")).x, x
    )  # written by us, in order


def test_a_run_keeps_the_layout_of_its_data(tmp_path, monkeypatch):
    """What a run held out, its file and its own samples are items of the run, also where the axes are as long."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(20, 6, 6)).astype(np.float32))
    shutil.copy("x.npy", "y.npy")  # a file that the run was not trained on
    small = ["network.name=mlp", "network.width=8", "training.sample_every=0", "data.layout=LC"]
    settings = [word for setting in small for word in ("--set", setting)]
    for args in (
        ["train", "--data", "x.npy", "--run", "run", "--steps", "1", *settings],
        ["sample", "--run", "run", "-n", "3", "--steps", "2", "--out", "samples.npz"],
        *(["encode", *data, "--run", "run", "--steps", "2", "--force"] for data in ([], ["y.npy"], ["samples.npz"])),
    ):
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, (result.output, result.exception)
    assert sdediff.load("run").data.shape == (6, 6)
    run, moments = open_run(Path("run"), "cpu", Console()), sdediff.load("run").moments
    with np.load("samples.npz") as arrays:
        assert np.array_equal(read_items("samples.npz", run)[0], arrays["samples"])
    assert np.array_equal(read_items("y.npy", run)[0], np.load("x.npy").swapaxes(1, 2))
    data = load_dataset("x.npy", layout="LC")
    assert torch.equal(read_items(None, run)[0], data.held_out)
    assert torch.allclose(moments.mean.double(), data.train.double().mean(0), atol=1e-6)


# ---- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["u1", "i8", ">i4", "column"])
@pytest.mark.parametrize("parts", [("data", "labels"), ("x_train", "y_train"), ("odd", "labels")])
def test_labels_stay_with_their_items(tmp_path, parts, kind):
    """The label of an item is a function of the item, before and after."""
    x = np.random.default_rng(0).permutation(100)[:, None] + np.zeros((1, 2))
    y = (x[:, 0] % 7).astype("i8" if kind == "column" else kind)
    np.savez(tmp_path / "x.npz", **{parts[0]: x.astype(np.int16), parts[1]: y[:, None] if kind == "column" else y})
    data = load_dataset(tmp_path / "x.npz", seed=3)
    for items, labels in ((data.train, data.train_labels), (data.held_out, data.held_out_labels)):
        assert labels.dtype == torch.int64
        assert torch.equal(items[:, 0].long() % 7, labels)
    items = load_items(tmp_path / "x.npz", parts[:1])
    assert torch.equal(items.x[:, 0].long() % 7, items.labels)
    assert "7 classes" in str(data)


def test_both_parts_have_labels_of_their_own(tmp_path):
    x = np.arange(10)[:, None] + np.zeros((1, 2), dtype=int)
    np.savez(tmp_path / "x.npz", x_train=x[:6], y_train=np.arange(6), x_test=x[6:], y_test=np.arange(6, 10))
    data = load_dataset(tmp_path / "x.npz")
    assert data.train_labels.tolist() == data.train[:, 0].tolist()
    assert data.held_out_labels.tolist() == data.held_out[:, 0].tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(["a"] * 9 + ["b"]), "whole numbers from 0 on, not <U1"),
        (np.arange(10) - 1, "whole numbers from 0 on"),
        (np.arange(10) / 2, "not float64"),
        (np.arange(9), r"one an item, \(10,\), not \(9,\)"),
        (np.array([{}] * 10), "pickled objects"),
    ],
)
def test_what_is_no_label_is_left_out_with_a_warning(tmp_path, labels, message):
    np.savez(tmp_path / "x.npz", data=np.arange(20).reshape(10, 2), labels=labels)
    with pytest.warns(sdediff.data.DataWarning, match=message):
        data = load_dataset(tmp_path / "x.npz")
    assert (data.train_labels, data.held_out_labels) == (None, None)


# ---- damage ------------------------------------------------------------------------------------------------------


def header(shape, dtype="<f4", size=64):
    """The bytes of a ``.npy`` that promises a shape, and ``size`` zeros."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(size)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((1 << 40, 1 << 40)), "promises float32"),
        (header((5, 4)), "80 bytes; the file holds 64"),
        (header((-4, -4)), "promises"),
        (header((4, 4), "|O"), "pickled objects"),
        (b"\x93NUMPY\x09\x00" + bytes(60), "version"),
        (header((4, 4))[:50], "cannot be read"),
        (b"", "cannot be read"),
        (header((4, 1), "<c8"), "integers or floats, not complex64"),
        (header((0, 4)), "at least one item"),
        (header(()), r"\(n, \.\.\.\)"),
    ],
)
def test_what_a_header_promises_is_held_against_the_file(tmp_path, content, message, archive):
    path = tmp_path / ("x.npz" if archive else "x.npy")
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("data.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_items(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_what_is_wanted_is_read(tmp_path):
    x = np.arange(20.0, dtype=np.float32).reshape(10, 2)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for name, content in {
            "bomb": header((1 << 40, 1 << 40)),
            "junk": b"junk",
            "objects": header((4,), "|O"),
        }.items():
            file.writestr(f"{name}.npy", content)
        file.writestr("data.npy", header((10, 2), size=0) + x.tobytes())
        file.writestr("notes.txt", "no array")
    assert np.array_equal(load_items(tmp_path / "x.npz").x, x)
    with pytest.raises(ValueError, match="promises"):
        load_items(tmp_path / "x.npz", ("bomb",))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, suffix):
    """400 files cut short or with bytes changed: nothing but items of the right kind, or a ValueError that names it."""
    path, x = tmp_path / f"x{suffix}", np.arange(24, dtype=np.int16).reshape(8, 3)
    (np.save if suffix == ".npy" else np.savez_compressed)(path, x)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), []
    for i in range(400):
        content = bytearray(whole)
        if i % 4 == 0:
            del content[rng.integers(len(content)) :]
        for place in rng.integers(len(content), size=rng.integers(1, 4)) if content and i % 4 else ():
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            items = load_items(path, ordered=True).x
            assert items.ndim >= 2
            assert items.numel() <= 24 * 8  # types narrower than the stored one may have more
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(str(path) in line and "\n" not in line for line in refused)


PEAK = """
import sys
from pathlib import Path
from sdediff.data import load_dataset

def peak():  # of this process alone, unlike getrusage's, which starts from the parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

before = peak()
found = load_dataset(sys.argv[1])
copy = found.train.long() if sys.argv[2] == "copy" else None
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read as Linux tells it")
@pytest.mark.parametrize("what", ["reader", "copy"])
def test_reading_bytes_takes_about_twice_the_pixels(tmp_path, what):
    """Two, and what the allocator keeps, in a process of its own; a copy in int64 takes eight more."""
    x = np.random.default_rng(0).integers(0, 256, (8_000, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "x.npz"), what]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (int(found.stdout) / x.nbytes < 3.2) == (what == "reader")
