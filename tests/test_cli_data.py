"""The data of people at the command line: each is said to be what it is and trained on, or refused with the cure."""

import csv
import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sdediff.cli import main
from sdediff.data import load_dataset

RNG = np.random.default_rng(0)
SMALL = ["network.width=8", "training.batch_size=8", "training.sample_every=0"]


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def train(data, *args):
    settings = [word for setting in SMALL for word in ("--set", setting)]
    return run("train", "--data", data, "--run", "run", "--steps", 1, "--force", *settings, *args)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Photos of several sizes, classes by folder, a table with names and gaps, IDX, series, volumes."""
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        pixels = RNG.integers(0, 256, (20 + 3 * i, 40 - i, 3), dtype=np.uint8)
        for folder, picture in (("photos", pixels), (f"classes/{'ab'[i % 2]}", pixels[:8, :8])):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / f"IMG_{i:02d}.png")
    rows = RNG.normal(size=(40, 4))
    np.savez("named.npz", **dict(zip(["age", "income", "dose", "bmi"], rows.T, strict=True)))
    rows[::8, 1] = np.nan
    np.save("nan.npy", rows)
    lines = [",".join("" if np.isnan(v) else str(v) for v in row) for row in rows]
    (tmp_path / "table.csv").write_text("\n".join(["age,income,dose,bmi", *lines]) + "\n")
    idx = struct.pack(">4I", 2051, 30, 8, 8) + RNG.integers(0, 256, 30 * 64, dtype=np.uint8).tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    np.save("series.npy", RNG.normal(size=(30, 3, 24)).astype(np.float32))
    np.save("volume.npy", RNG.normal(size=(30, 1, 6, 6, 6)).astype(np.float32))


CASES = {
    "photos": ("data.size (--size 64) resizes and crops them", ["--size", 16], "10 images 3x16x16, colour, 256 levels"),
    "classes": ("", [], "10 images 3x8x8, colour, 256 levels; 2 held out; 2 classes (a, b)"),
    "table.csv": ("data.missing=drop leaves those out", ["--missing", "drop"], " rows of 4 columns, continuous; "),
    "nan.npy": ("5 of 160 values are missing", ["--missing", "median"], "32 rows of 4 columns, continuous; "),
    "named.npz": ("", [], "32 rows of 4 columns, continuous; 8 held out; columns standardised inside"),
    "train-images-idx3-ubyte": ("", [], "24 images 1x8x8, grey, 256 levels; 6 held out"),
    "t10k-images-idx3-ubyte.gz": ("", [], "24 images 1x8x8, grey, 256 levels; 6 held out"),
    "series.npy": ("", [], "24 series 3x24, 3 channels, continuous; 6 held out"),
    "volume.npy": ("", [], "24 volumes 1x6x6x6, 1 channel, continuous; 6 held out"),
}


@pytest.mark.parametrize("data", CASES)
def test_every_input_trains_or_is_refused_with_the_cure(inputs, data):
    cure, options, what = CASES[data]
    first = train(data)
    if cure:
        assert first.exit_code == 2
        assert first.stderr.startswith("error: ")
        assert len(first.stderr.splitlines()) == 1
        assert cure in first.stderr
        first = train(data, *options)
    assert first.exit_code == 0, first.stderr
    assert any(line.startswith(f"training on {data}: ") and what in line for line in first.stderr.splitlines())
    guessed = data in ("series.npy", "volume.npy", "train-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz", "nan.npy")
    assert guessed == any(line.startswith(f"note: {data}: items ") for line in first.stderr.splitlines())


def test_scores_carry_row_numbers_and_file_names(inputs):
    """Of the run's own held-out items and of other files, whose rows with gaps are left out."""
    assert train("table.csv", "--missing", "drop").exit_code == 0
    score = ["--run", "run", "--steps", 2, "--out"]
    for out, data in (("own.csv", ()), ("all.csv", ("nan.npy",))):
        result = run("likelihood", *data, *score, out)
        assert result.exit_code == 0, result.stderr
    files = {name: Path(name).read_text().splitlines() for name in ("own.csv", "all.csv")}
    rows = {name: [int(row["row"]) for row in csv.DictReader(lines)] for name, lines in files.items()}
    with pytest.warns(match="values are missing"):
        held_out = load_dataset("table.csv", missing="drop").held_out_ids.tolist()
    assert rows == {"own.csv": held_out, "all.csv": [i for i in range(40) if i % 8]}
    assert train("photos", "--size", 8).exit_code == 0
    result = run("likelihood", "--run", "run", "--steps", 20, "--out", "bits.npz")
    assert result.exit_code == 0, result.stderr
    assert run("encode", "./photos", "--run", "run", "--steps", 2, "--out", "z.npz").exit_code == 0
    with np.load("bits.npz") as bits, np.load("z.npz") as latents:
        assert bits["file_name"].tolist() == load_dataset("photos", size=8).held_out_ids.tolist()
        assert latents["file_name"].tolist() == [f"IMG_{i:02d}.png" for i in range(12)]


def test_data_are_read_as_the_run_s_but_for_what_a_command_is_told(inputs):
    """Gaps and text in the data to score, of which the training data had none."""
    assert train("named.npz").exit_code == 0
    lines = Path("table.csv").read_text().splitlines()
    Path("more.csv").write_text("\n".join([f"{lines[0]},kind", *(f"{line},ok" for line in lines[1:])]))
    score = ["likelihood", "more.csv", "--run", "run", "--steps", 5, "--json"]
    text, gaps = ["--set", "data.text=drop"], ["--set", "data.missing=drop"]
    for told, cure in ((gaps, "--set data.text=drop leaves them out"), (text, "--set data.missing=drop leaves those")):
        refused = run(*score, *told)
        assert refused.exit_code == 2
        assert cure in refused.stderr
    result = run(*score, *text, *gaps)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["items"] == 35
    for command in (["encode", "more.csv", "--run", "run"], ["evaluate", "run", "--data", "more.csv"]):
        refused = run(*command, *gaps)
        assert "--set data.text=drop leaves them out" in refused.stderr, refused.stderr
    for told, line in (
        ("model.kind=vae", "--set model.kind does not say how DATA are read; choose of: data.kind, "),
        ("data.text=no", "unknown treatment of text 'no'; choose one of: refuse, drop"),
        ("data.text", "--set wants SECTION.KEY=VALUE, not 'data.text'"),
    ):
        refused = run(*score, "--set", told)
        assert refused.exit_code == 2
        assert line in refused.stderr
    refused = run("likelihood", "--run", "run", *text)
    assert "--set says how a file or folder is read: give the path of another than the run's own" in refused.stderr


def test_a_run_whose_data_have_changed_says_so(inputs):
    assert train("named.npz").exit_code == 0
    with np.load("named.npz") as arrays:
        np.savez("named.npz", **{name: arrays[name][:-1] for name in arrays.files})
    result = run("likelihood", "--run", "run", "--steps", 2)
    assert (result.exit_code, "the data have changed since the run in run" in result.stderr) == (2, True)
    assert run("likelihood", "nan.npy", "--run", "run", "--steps", 2).exit_code == 2  # with gaps
    with np.load("named.npz") as arrays:
        np.save("other.npy", np.stack([arrays[name] for name in arrays.files], axis=1))
    assert run("likelihood", "other.npy", "--run", "run", "--steps", 2).exit_code == 0
