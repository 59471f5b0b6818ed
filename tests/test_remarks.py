"""What is said of odd data: each oddity once and with its cure, nothing of good data, to library and command line."""

import json
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sdediff
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.data import TOYS, DataWarning, load_dataset, to_values
from sdediff.data.remarks import remarks
from sdediff.training import train
from sdediff.types import DataInfo

RNG = np.random.default_rng(0)
N = RNG.standard_normal((400, 4)).astype(np.float32)


def columns(**changed):
    """Standard normal columns, some of them replaced."""
    x = N.copy()
    for name, column in changed.items():
        x[:, int(name[1:])] = column
    return x


BITS = RNG.integers(0, 2, 400)
PIXELS = RNG.integers(0, 256, (20, 3, 8, 8))
ODD = {
    "one value": (columns(c1=5.0), ["1 of 4 columns hold one value only: 1 (5); "]),
    "bits": (columns(c3=BITS), ["1 of 4 columns take few values: 3 (2 values); "]),
    "ages": (columns(c0=RNG.integers(18, 90, 400)), ["1 of 4 columns take few values: 0 (72 values); "]),
    "numbers of rows": (columns(c1=np.arange(400)[::-1]), ["1 of 4 columns number the rows: 1 (0 to 399); "]),
    "large": (columns(c2=5000.0 + 1000.0 * N[:, 2]), ["1 of 4 columns are far from unit size: 2 (mean "]),
    "small": (columns(c2=1e-3 * N[:, 2]), ["1 of 4 columns are far from unit size: 2 (mean "]),
    "far": (columns(c2=100.0 + N[:, 2]), ["1 of 4 columns are far from unit size: 2 (mean "]),
    "all": (
        columns(c0=7.0, c1=BITS, c2=1e3 * N[:, 2]),
        ["1 of 4 columns hold one value", "1 of 4 columns take few", "1 of 4 columns are far"],
    ),
    "heavy": (columns(c1=np.exp(1.5 * N[:, 1])), ["1 of 4 columns have heavy tails: 1 (kurtosis "]),
    "many": (1e3 * np.repeat(N, 2, axis=1), ["8 of 8 columns are far from unit size: 0 ("]),
    "levels": (PIXELS.astype(np.float32), ["the floats lie on 256 evenly spaced values from 0 to 255, as levels do"]),
    "levels on [0, 1]": (PIXELS / 255, ["the floats lie on 256 evenly spaced values from 0 to 1, as levels do"]),
    "levels on [-1, 1]": (
        PIXELS / 127.5 - 1,
        ["the floats lie on 256 evenly spaced values from -1 to 1, as levels do"],
    ),
    "few levels": (PIXELS % 17 / 8, ["the floats lie on 17 evenly spaced values from 0 to 2, as levels do"]),
    "binary": (PIXELS % 2, ["the floats lie on 2 evenly spaced values from 0 to 1, as levels do"]),
    "bright channel": (
        np.stack([N.reshape(25, 8, 8), 50.0 * N.reshape(25, 8, 8)], axis=1),
        ["1 of 2 channels are far from unit size: 1 ("],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_every_oddity_is_said_once_with_its_cure(case):
    x, starts = ODD[case]
    lines = remarks(torch.from_numpy(np.asarray(x, dtype=np.float32)))
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    for line in lines:
        assert "\n" not in line
        assert any(
            cure in line for cure in ("leave them out", "as integers", "(x - mean) / deviation", "the logarithm")
        )


@pytest.mark.parametrize(
    "x",
    [
        N,
        5.0 * N + 4.0,
        0.2 * N,
        RNG.random((50, 1, 8, 8)),
        -np.log(RNG.random((400, 4))),  # exponential: its kurtosis is 9, 5.6 +- 3 in 400
        N[:7] * 1e3,  # too few to tell
        np.where(BITS[:, None] > 0, N, 0.0),  # zeros among others
        *(load_dataset(name).train.numpy() for name in TOYS),
    ],
)
def test_nothing_is_said_of_good_data(x):
    assert remarks(torch.from_numpy(np.asarray(x, dtype=np.float32))) == []


def test_the_cure_for_units_holds():
    """Rows in units of their own: log p(x) is log p((x - mean) / deviation) less the sum of log(deviation)."""
    mean, std = torch.tensor([5000.0, 0.0]).double(), torch.tensor([1000.0, 1e-3]).double()
    x = mean + std * torch.from_numpy(N[:, :2]).double()
    whole = torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    inner = torch.distributions.Normal(0.0, 1.0).log_prob((x - mean) / std).sum(1) - std.log().sum()
    assert torch.allclose(whole, inner, rtol=1e-12)


def test_the_library_warns_at_the_callers_line(tmp_path):
    np.save(tmp_path / "x.npy", columns(c1=5.0))
    config = Config().updated(
        {"data.name": str(tmp_path / "x.npy"), "training.steps": 1, "training.sample_every": 0, "network.width": 8}
        | {"network.name": "mlp"}
    )
    for call in (lambda: load_dataset(tmp_path / "x.npy"), lambda: train(config, tmp_path / "run", progress=False)):
        with pytest.warns(DataWarning, match=r"x\.npy: 1 of 4 columns hold one value") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, tmp_path / "other", progress=False, data=dataset_of(tmp_path / "x.npy"))  # read and said already


def dataset_of(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return load_dataset(path)


@pytest.mark.parametrize("action", ["error", "default", "ignore"])
def test_the_command_line_prints_lines_whatever_the_filters(tmp_path, monkeypatch, action):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", data=columns(c1=5.0), labels=BITS)
    small = ["--set", "network.name=mlp", "--set", "network.width=8", "--set", "training.sample_every=0"]
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        trained = CliRunner().invoke(main, ["train", "--data", "x.npz", "--run", "run", "--steps", "2", *small])
        scored = CliRunner().invoke(main, ["likelihood", "--run", "run", "-n", "3", "--steps", "3", "--json"])
    for result in (trained, scored):
        assert result.exit_code == 0, (result.output, result.exception)
        assert sum(line.startswith("warning: x.npz: 1 of 4 columns") for line in result.stderr.splitlines()) == 1
        assert "DataWarning" not in result.stderr
    what = "training on x.npz: 320 rows of 4 columns, continuous; 80 held out; 2 classes (cpu), to run"
    assert any(line.startswith(what[:70]) for line in trained.stderr.splitlines())
    assert "data: held-out x.npz, 3 rows of 4 columns, continuous" in scored.stderr.splitlines()
    assert json.loads(scored.stdout)["items"] == 3


# ---- levels as floats ----------------------------------------------------------------------------------------------

INFO = DataInfo((3,), 18, name="digits")  # of an even number of levels none is in the middle
X = torch.tensor([[0, 5, 16], [3, 2, 1], [9, 9, 0]])


def exact(dtype=torch.float64):
    """An exact model of three columns, with eighteen levels on [-1, 1]."""
    data = sdediff.analytic.GaussianMixture(means=[[-0.5, 0.0, 0.3]], covariances=[0.1])
    model = data.model(sdediff.VPSDE())
    model.data = INFO
    return model


VERBS = {
    "log_likelihood": lambda x: sdediff.log_likelihood(exact(), x, steps=4).log_prob,
    "elbo": lambda x: sdediff.elbo(exact(), x, steps=4).total,
    "encode": lambda x: sdediff.encode(exact(), x, steps=4),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_levels_as_floats_are_noticed(verb, dtype):
    with pytest.warns(
        DataWarning, match=r"the levels 0 \.\. 17 of digits, not .* \[-1, 1\]: give integers, or"
    ) as said:
        VERBS[verb](X.to(dtype).double())
    assert [warning.filename for warning in said] == [__file__]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "x",
    [
        to_values(X, INFO, dtype=torch.float64),
        to_values(X, INFO, u=torch.rand(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)),
        torch.zeros(3, 3, dtype=torch.float64),
        torch.ones(3, 3, dtype=torch.float64),
        X.double() + 0.5,
    ],
)
def test_values_are_not_taken_for_levels(verb, x):
    VERBS[verb](x)  # warnings are errors


def test_integers_are_encoded_at_the_centres_of_their_bins():
    model = exact()
    for dtype in (torch.uint8, torch.uint16, torch.int64):
        z = sdediff.encode(model, X.to(dtype), steps=4)
        assert torch.equal(z, sdediff.encode(model, to_values(X, INFO, dtype=z.dtype), steps=4))
    with pytest.raises(ValueError, match=r"levels must lie in 0 \.\. 17; came 2 to 18"):
        sdediff.encode(model, X + 2, steps=4)
    model.data = INFO._replace(levels=None)
    with pytest.raises(ValueError, match=r"must be a float tensor .* not torch\.int64 .*by sdediff\.data\.to_values"):
        sdediff.encode(model, X, steps=4)


def test_a_file_of_levels_as_floats_is_refused_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"network.name": "mlp", "network.width": 8, "network.blocks": 1}
    sdediff.save(build(Config().updated(small), load_dataset("digits").info), "run")
    np.save("x.npy", load_dataset("digits").held_out[:4].numpy().astype(np.float32))
    for command in ("likelihood", "encode"):
        result = CliRunner().invoke(main, [command, "x.npy", "--run", "run"])
        assert result.exit_code == 2
        assert result.stderr.startswith("error: x.npy: these floats are the levels 0 .. 16 of digits")
    np.save("x.npy", load_dataset("digits").held_out[:4].numpy().astype(np.uint16))
    assert CliRunner().invoke(main, ["encode", "x.npy", "--run", "run", "--steps", "3"]).exit_code == 0
