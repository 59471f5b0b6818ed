"""What people have: IDX, CIFAR-10, tables with names and gaps, saved sets; every item by its label, row and name."""

import builtins
import gzip
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff.data import DataWarning, load_dataset
from sdediff.data.files import load_items
from sdediff.data.idx import is_idx
from sdediff.data.reading import DAMAGED, MISSING, TEXT, Reading

RNG = np.random.default_rng(0)
N = RNG.normal(size=(60, 3))


def refused(*args, **options):
    """The one line of a refusal."""
    with pytest.raises(ValueError) as caught:
        load_dataset(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- IDX ---------------------------------------------------------------------------------------------------------

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array):
    """The bytes of an IDX file: by the definition of the format, big-endian."""
    code = CODES[array.dtype.str[1:]]
    head = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", CODES)
def test_idx_files_hold_what_was_written(tmp_path, dtype, packed):
    x = (RNG.random((6, 7, 5)) * 9).astype(dtype)
    path = tmp_path / "odd-name"
    path.write_bytes(gzip.compress(idx(x)) if packed else idx(x))
    assert is_idx(path)
    assert np.array_equal(
        load_items(path, reading=Reading(kind="image")).x[:, 0].numpy(), x.astype(np.float32) if dtype[0] == "f" else x
    )


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_folder_is_both_parts_with_their_labels(tmp_path, packed):
    x = np.arange(20, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), dtype=np.uint8)
    for name, rows in (("train", slice(0, 12)), ("t10k", slice(12, 20))):
        for kind, array in (("images-idx3", x[rows]), ("labels-idx1", x[rows, 0, 0] % 10)):
            path = tmp_path / f"{name}-{kind}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    data = load_dataset(tmp_path)
    assert (data.info.shape, data.info.levels, len(data.train), len(data.held_out)) == ((1, 4, 4), 256, 12, 8)
    for items, labels in ((data.train, data.train_labels), (data.held_out, data.held_out_labels)):
        assert torch.equal(items[:, 0, 0, 0].long() % 10, labels)
    alone = load_items(tmp_path / f"train-images-idx3-ubyte{'.gz' * packed}")
    assert torch.equal(alone.x[:, 0, 0, 0].long() % 10, alone.labels)
    (tmp_path / f"emnist-train-images-idx3-ubyte{'.gz' * packed}").write_bytes(idx(x))
    assert "several sets: name one of emnist-train-images" in refused(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files_are_named_in_one_line(tmp_path, packed):
    """200 files cut short or with bytes changed: items, or a line that names the file; a header promises in vain."""
    path, whole = tmp_path / "x-idx2-ubyte", idx(RNG.integers(0, 9, (30, 4), dtype=np.uint8))
    lines = []
    path.write_bytes(whole[:4] + struct.pack(">2I", 1 << 31, 1 << 31) + whole[12:])
    assert "promises uint8" in refused(path)
    for i in range(200):
        content = bytearray(whole)
        if i % 2:
            content[RNG.integers(12)] = RNG.integers(256)
        else:
            del content[RNG.integers(4, len(content)) :]
        path.write_bytes(gzip.compress(content)[: -9 if i % 4 == 0 else None] if packed else content)
        try:
            assert load_items(path).x.ndim >= 2
        except ValueError as error:
            lines.append(str(error))
    assert len(lines) > 50
    assert all("x-idx2-ubyte" in line and "\n" not in line for line in lines)


# ---- CIFAR-10 ------------------------------------------------------------------------------------------------------


def test_cifar_is_read_from_its_binary_batches(tmp_path):
    """A record is a label and the red, green and blue planes, row by row."""
    images, labels = RNG.integers(0, 256, (15, 3, 32, 32), dtype=np.uint8), RNG.integers(0, 10, 15, dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.reshape(15, -1)], axis=1)
    for name, rows in (("data_batch_1", slice(0, 5)), ("data_batch_2", slice(5, 10)), ("test_batch", slice(10, 15))):
        (tmp_path / f"{name}.bin").write_bytes(records[rows].tobytes())
    (tmp_path / "batches.meta.txt").write_text("plane\ncar\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n")
    data = load_dataset(tmp_path)
    assert np.array_equal(data.train.numpy(), images[:10])
    assert np.array_equal(data.held_out.numpy(), images[10:])
    assert data.held_out_labels.tolist() == labels[10:].tolist()
    assert (data.classes[3], len(data.classes)) == ("cat", 10)
    (tmp_path / "data_batch_2.bin").write_bytes(records[:2].tobytes()[:-1])
    assert "data_batch_2.bin cannot be read: 6,145 bytes are no whole number" in refused(tmp_path)


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": [1]}))
    assert "take the binary version of CIFAR-10" in refused(tmp_path)
    assert "is a pickle, which could execute anything" in refused(tmp_path / "data_batch_1")


# ---- tables --------------------------------------------------------------------------------------------------------

NAMES = ("age", "income", "dose")


def write_table(path, columns):
    """A table as CSV, Parquet, or a NumPy file of named columns."""
    if path.suffix in (".csv", ".tsv"):
        separator = "\t" if path.suffix == ".tsv" else ","
        rows = zip(*columns.values(), strict=True)
        lines = [separator.join("" if v != v else str(v) for v in row) for row in rows]
        path.write_text("\n".join([separator.join(columns), *lines]) + "\n")
    elif path.suffix == ".npz":
        np.savez(path, **columns)
    elif path.suffix == ".npy":
        kinds = [(name, np.asarray(column).dtype) for name, column in columns.items()]
        np.save(path, np.array(list(zip(*columns.values(), strict=True)), dtype=kinds))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({name: pyarrow.array(list(c)) for name, c in columns.items()}), path)


KINDS_OF_TABLE = ["x.csv", "x.tsv", "x.parquet", "x.npz", "x.npy"]


@pytest.mark.parametrize("file", KINDS_OF_TABLE)
def test_tables_are_rows_of_their_columns(tmp_path, file):
    write_table(tmp_path / file, dict(zip(NAMES, N.T, strict=True)))
    data = load_dataset(tmp_path / file)
    assert (data.columns, data.info.shape) == (NAMES, (3,))
    for part, ids in ((data.train, data.train_ids), (data.held_out, data.held_out_ids)):
        assert np.array_equal(part.numpy(), N[ids].astype(np.float32))
    assert sorted([*data.train_ids, *data.held_out_ids]) == list(range(60))


@pytest.mark.parametrize("file", KINDS_OF_TABLE)
def test_columns_that_are_no_numbers_are_named_dropped_or_classes(tmp_path, file):
    kind = np.array(["cat", "dog"])[np.arange(60) % 2]
    write_table(tmp_path / file, {"age": N[:, 0], "species": kind, "dose": N[:, 1]})
    line = refused(tmp_path / file)
    assert (
        "1 of 3 columns are no numbers: species (text, as 'cat'); --set data.text=drop leaves them out, data.label=NAME"
        in line
    )
    with pytest.warns(DataWarning, match=r"species \(text, as 'cat'\); they are left out"):
        assert load_dataset(tmp_path / file, text="drop").columns == ("age", "dose")
    data = load_dataset(tmp_path / file, label="species")
    assert (data.columns, data.classes) == (("age", "dose"), ("cat", "dog"))
    assert data.train_labels.tolist() == [i % 2 for i in data.train_ids]
    assert "no column 'kind' for labels; it has age, species, dose" in refused(tmp_path / file, label="kind")


def test_a_csv_without_names_loses_no_row(tmp_path):
    (tmp_path / "x.csv").write_text("\n".join(";".join(map(str, row)) for row in N))
    data = load_dataset(tmp_path / "x.csv")
    assert len(data.train) + len(data.held_out) == 60
    assert data.columns == ("f0", "f1", "f2")


def test_booleans_and_gaps_of_integers_are_numbers(tmp_path):
    write_table(
        tmp_path / "x.parquet", {"a": [1, None, 3, 4], "b": [True, None, False, True], "c": [1.5, 2.5, 3.5, 4.5]}
    )
    with pytest.warns(DataWarning, match="2 of 12 values are missing, in 1 of 4 items; those items are left out"):
        items = load_items(tmp_path / "x.parquet", reading=Reading(missing="drop"))
    assert items.x.tolist() == [[1, 1, 1.5], [3, 0, 3.5], [4, 1, 4.5]]
    assert items.ids.tolist() == [0, 2, 3]


def test_damaged_tables_are_named(tmp_path):
    write_table(tmp_path / "x.parquet", {"a": [1.0, 2.0]})
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-7])
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n3,4\n")
    for name, message in {"x.parquet": "cannot be read", "x.csv": "cannot be read", "twice.csv": "called 'a'"}.items():
        assert message in (line := refused(tmp_path / name))
        assert name in line


@pytest.mark.parametrize(("module", "cure"), [("pyarrow", "sdediff[tables]"), ("datasets", "sdediff[hub]")])
def test_what_is_not_installed_is_named_with_the_cure(tmp_path, monkeypatch, module, cure):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install") as caught:
        load_dataset(tmp_path / "x.csv" if module == "pyarrow" else tmp_path)
    assert cure in str(caught.value)


def test_one_of_several_arrays_is_chosen_by_name(tmp_path):
    np.savez(tmp_path / "x.npz", a=N, b=N[:, :2])
    assert "it holds a, b; data.array=NAME chooses one" in refused(tmp_path / "x.npz")
    assert load_dataset(tmp_path / "x.npz", array="b").info.shape == (2,)
    assert "must hold one array, c" in refused(tmp_path / "x.npz", array="c")


def test_a_mask_says_what_is_held_out(tmp_path):
    mask = np.arange(60) % 3 == 0
    np.savez(tmp_path / "x.npz", data=N, test_mask=mask)
    data = load_dataset(tmp_path / "x.npz", seed=5)
    assert data.held_out_ids.tolist() == np.flatnonzero(mask).tolist()
    assert np.array_equal(data.train.numpy(), N[~mask].astype(np.float32))
    np.savez(tmp_path / "x.npz", data=N, test_mask=mask[:-1])
    assert "test_mask: it must be true for some of the 60 items" in refused(tmp_path / "x.npz")


# ---- missing values ------------------------------------------------------------------------------------------------


def gappy(tmp_path):
    """Rows with gaps in every fifth, of which one entry is missing."""
    x = N.copy()
    x[::5, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    return x, tmp_path / "x.npy"


def test_missing_values_are_refused_with_the_cure(tmp_path):
    line = refused(gappy(tmp_path)[1])
    assert "12 of 180 values are missing, in 12 of 60 items; --set data.missing=drop leaves" in line


@pytest.mark.parametrize("how", [how for how in MISSING if how != "refuse"])
def test_missing_values_are_dropped_or_filled_and_counted(tmp_path, how):
    """Rows keep their numbers; what is filled comes from training rows alone; nothing that is held out is invented."""
    x, path = gappy(tmp_path)
    with pytest.warns(DataWarning, match="12 of 180 values are missing, in 12 of 60 items; "):
        data = load_dataset(path, missing=how)
    whole = np.isfinite(x).all(axis=1)
    assert np.array_equal(data.held_out.numpy(), x[data.held_out_ids].astype(np.float32))
    assert whole[data.held_out_ids].all()
    if how == "drop":
        assert np.array_equal(data.train.numpy(), x[data.train_ids].astype(np.float32))
        return
    rows = x[data.train_ids]
    there = rows[np.isfinite(rows[:, 1]), 1]
    centre = there.mean() if how == "mean" else np.sort(there)[(len(there) - 1) // 2]
    assert len(rows) > len(there)
    expected = np.where(np.isnan(rows), centre, rows)
    np.testing.assert_allclose(data.train.numpy(), expected, rtol=1e-6)


def test_what_cannot_be_filled_is_said(tmp_path):
    x = N.copy()
    x[:, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    for missing in ("refuse", "drop", "mean", "median"):  # none of them is a cure
        assert "entry 2 of the items has no value at all" in refused(tmp_path / "x.npy", missing=missing)
    write_table(tmp_path / "x.npz", {"age": x[:, 0], "dose": x[:, 2]})
    assert "column dose of the items has no value at all" in refused(tmp_path / "x.npz", missing="drop")
    x[:, 2], x[::2, 2], x[1::2, 1] = 1.0, np.nan, np.nan
    np.save(tmp_path / "x.npy", x)
    assert "no item of a part is without missing values" in refused(tmp_path / "x.npy", missing="drop")


@pytest.mark.parametrize("choice", [{"missing": "no"}, {"text": "no"}, {"damaged": "no"}, {"kind": "no"}, {"size": 0}])
def test_choices_are_checked_before_anything_is_read(choice):
    assert "no" in refused("moons", **choice) or "at least 1 pixel" in refused("moons", **choice)
    assert all(len(meaning) > 5 for table in (MISSING, TEXT, DAMAGED) for meaning in table.values())


# ---- kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "kind", "shape"),
    [
        ((40,), "vector", (40,)),
        ((40,), "series", (1, 40)),
        ((3, 40), "series", (3, 40)),
        ((40, 3), "series", (3, 40)),
        ((3, 40), "image", (1, 3, 40)),
        ((8, 8), "image", (1, 8, 8)),
        ((8, 8, 3), "image", (3, 8, 8)),
        ((6, 7, 8), "volume", (1, 6, 7, 8)),
        ((6, 7, 8, 2), "volume", (2, 6, 7, 8)),
        (
            (40, 12),
            "series",
            "can mean several things; say which by data.layout, one of: CL (series, channels first), LC",
        ),
        ((40,), "image", "the items have shape (40,), those of kind 'image' (C, H, W) or (H, W, C) or (H, W)"),
        ((4, 4), "vector", "those of kind 'vector' (D,)"),
        ((4, 4), "volume", "those of kind 'volume'"),
    ],
)
def test_a_declared_kind_is_what_items_are(tmp_path, item, kind, shape):
    np.save(tmp_path / "x.npy", RNG.normal(size=(10, *item)))
    if isinstance(shape, str):
        assert shape in refused(tmp_path / "x.npy", kind=kind)
        return
    data = load_dataset(tmp_path / "x.npy", kind=kind)
    assert (data.info.shape, data.notes) == (shape, ())


@pytest.mark.filterwarnings("ignore::sdediff.data.DataWarning")
@pytest.mark.parametrize(
    ("item", "taken"),
    [
        ((40,), "rows (D,) of shape (40,)"),
        ((3, 40), "series (C, L) of shape (3, 40)"),
        ((8, 8), "images (C, H, W) of shape (1, 8, 8)"),
        ((1, 6, 6, 6), "volumes (C, D, H, W) of shape (1, 6, 6, 6)"),
    ],
)
def test_a_guess_is_said(tmp_path, item, taken):
    np.save(tmp_path / "x.npy", RNG.normal(size=(10, *item)))
    (note,) = load_dataset(tmp_path / "x.npy").notes
    assert f"items {item} are taken as {taken}; data.kind (--kind) and data.layout say otherwise" in note


def test_a_folder_of_images_is_no_series(tmp_path):
    for name in "abc":
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    assert "which are no series (C, L)" in refused(tmp_path, kind="series")
    assert "the layout 'LC' is of series, channels last, not of kind 'image'" in refused("x", kind="image", layout="LC")


def test_choices_that_change_nothing_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", N)
    assert "data.size (--size) is of image files" in refused(tmp_path / "x.npy", size=8)
    assert "data.label=a is a column of a table" in refused(tmp_path / "x.npy", label="a")
    assert "digits is no file: how it is read cannot be chosen (size)" in refused("digits", size=8)


# ---- saved sets ----------------------------------------------------------------------------------------------------


def test_saved_sets_of_datasets_are_images_with_labels_or_tables(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets")
    pixels, labels = RNG.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8), [i % 3 for i in range(12)]
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    images = [Image.fromarray(image) for image in pixels]
    whole = datasets.Dataset.from_dict({"img": images, "label": labels}, features=kinds)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select([5, 7])}).save_to_disk(tmp_path / "two")
    one, two = load_dataset(tmp_path / "one"), load_dataset(tmp_path / "two")
    assert np.array_equal(one.train.numpy(), pixels[one.train_ids].transpose(0, 3, 1, 2))
    assert one.train_labels.tolist() == [labels[i] for i in one.train_ids]
    assert (two.held_out_labels.tolist(), two.classes) == ([2, 1], ("a", "b", "c"))
    assert load_dataset(tmp_path / "two", size=4).info.shape == (3, 4, 4)
    datasets.Dataset.from_dict({"a": N[:, 0].tolist(), "b": N[:, 1].tolist()}).save_to_disk(tmp_path / "table")
    table = load_dataset(tmp_path / "table")
    assert np.array_equal(table.train.numpy(), N[table.train_ids, :2].astype(np.float32))
