"""Wrong arguments are refused where they are given, in one line that names the cure."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sdediff
from catalogue import MIXTURE
from sdediff.data import load_dataset
from sdediff.data.units import log_scale, to_data, to_model
from sdediff.likelihood.result import ErrorBudget
from sdediff.noise import Stage, probe_step, sign_step
from sdediff.options import SolveOptions, subset

MODEL = MIXTURE.model(sdediff.VPSDE())
X = MIXTURE.sample(3)


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: sdediff.sample(model, (3, 2)),
        lambda model: sdediff.solve(model, X),
        lambda model: sdediff.encode(model, X),
        lambda model: sdediff.log_likelihood(model, X),
        lambda model: sdediff.elbo(model, X),
        lambda model: sdediff.bits_per_dim(model, X.long().abs(), levels=4),
        lambda model: sdediff.compare(model, (3, 2)),
    ],
)
@pytest.mark.parametrize("model", [nn.Linear(2, 2), lambda x, t: x, None])
def test_what_is_no_denoiser(verb: Callable[[Any], object], model: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a denoiser, as ScoreModel\(network, sde\) is, not "):
        verb(model)


def test_what_is_no_process() -> None:
    with pytest.raises(TypeError, match=r"must be an SDE, as VPSDE\(\) is, not 'vp'"):
        sdediff.ScoreModel(nn.Linear(2, 2), "vp")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "info",
    [
        sdediff.DataInfo((3,), shift=(0.0, 0.0, 0.0), scale=(1.0, 0.0, 1.0)),
        sdediff.DataInfo((3,), shift=(0.0,)),
        sdediff.DataInfo((1, 4, 4), scale=(2.0,)),
    ],
)
def test_units_are_checked_with_the_model(info: sdediff.DataInfo) -> None:
    with pytest.raises(ValueError, match="scale"):
        sdediff.ScoreModel(nn.Linear(3, 3), sdediff.VPSDE(), data=info)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_samples_are_floats(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="must be a floating-point type"):
        sdediff.sample(MODEL, (2, 2), dtype=dtype)


def test_wrappers_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a ScoreModel can be saved, not a Clip"):
        sdediff.save(sdediff.Clip(MODEL, -1.0, 1.0), tmp_path / "run")  # type: ignore[arg-type]


def table(tmp_path: Path, offset: float, deviation: float) -> Path:
    z = np.random.default_rng(0).standard_normal((200, 2))
    np.savez(tmp_path / "x.npz", data=np.c_[offset + deviation * z[:, 0], z[:, 1]])
    return tmp_path / "x.npz"


@pytest.mark.parametrize(
    ("offset", "deviation", "words"),
    [(1.6e9, 10.0, "in steps of 128 only, .* subtract 1.6e"), (1e6, 1.0, "subtract 1e"), (0.0, 1e60, "beyond single")],
)
def test_columns_that_single_precision_does_not_hold(
    tmp_path: Path, offset: float, deviation: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        load_dataset(table(tmp_path, offset, deviation))


@pytest.mark.parametrize(("offset", "deviation"), [(5e3, 1e3), (0.0, 1e-30), (0.0, 1e30)])
def test_columns_that_it_holds(tmp_path: Path, offset: float, deviation: float) -> None:
    assert load_dataset(table(tmp_path, offset, deviation)).train.shape == (160, 2)


@pytest.mark.parametrize("shape", [4, 4.0, (), "ab", (4.0, 2), None])
@pytest.mark.parametrize("verb", [sdediff.sample, sdediff.compare])
def test_what_is_no_shape(verb: Callable[..., object], shape: Any) -> None:
    words = r"the shape must be \(n, \*item\) in whole numbers, as \(64, 2\) for 64 points, not " + re.escape(
        repr(shape)
    )
    with pytest.raises(ValueError, match=words):
        verb(MODEL, shape)


@pytest.mark.parametrize("shape", [(0, 2), [-1, 2]])
def test_no_items(shape: Any) -> None:
    with pytest.raises(ValueError, match=rf"the first in .*, must be a whole number, at least 1, not {shape[0]}"):
        sdediff.sample(MODEL, shape)


def test_shapes_of_any_kind_are_taken() -> None:
    for shape in ([2, 2], torch.Size((2, 2)), np.array([2, 2]), (np.int64(2), 2)):
        assert sdediff.sample(MODEL, shape, steps=2).shape == (2, 2)  # type: ignore[arg-type]


COUNTED: dict[str, Callable[[Any], object]] = {
    "log_likelihood": lambda given: sdediff.log_likelihood(MODEL, X, trace="hutchinson", **given),
    "bits_per_dim": lambda given: sdediff.bits_per_dim(MODEL, X.long().abs(), levels=4, **given),
    "sample": lambda given: sdediff.sample(MODEL, (3, 2), return_log_prob=True, **given),
}


@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
@pytest.mark.parametrize("option", ["probes", "batch_size"])
@pytest.mark.parametrize("verb", COUNTED)
def test_counts_are_whole_and_positive(verb: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be a whole number, at least 1, not {value!r}$"):
        COUNTED[verb]({option: value})


GRIDS: dict[str, tuple[Callable[[], object], str]] = {
    "no data": (
        lambda: sdediff.sample(MODEL, (3, 2), grid=[1.0, 0.5, 0.1]),
        r"1 to 0.1, but must end at t_to = 0 \(the",
    ),
    "no noise": (
        lambda: sdediff.sample(MODEL, (3, 2), grid=[0.9, 0.5, 0.0]),
        "0.9 to 0, but must begin at t_from = 1$",
    ),
    "encode": (lambda: sdediff.encode(MODEL, X, grid=[1e-5, 0.5]), "1e-05 to 0.5, but must end at t_to = 1$"),
    "decode": (lambda: sdediff.decode(MODEL, X, grid=[1.0, 0.1]), "1 to 0.1, but must end at t_to = 1e-05$"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_times_begin_and_end_where_the_solve_does(name: str) -> None:
    verb, words = GRIDS[name]
    with pytest.raises(ValueError, match=f"the grid's times run from {words}"):
        verb()


TEXTS = {
    "a list": np.array(["a", "b", "c"]),
    "numbers as text": np.array([["1.0", "2.0"]] * 5),
    "bytes": np.array([[b"1", b"2"]] * 5),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_no_data(name: str, tmp_path: Path) -> None:
    """In a file, in one line by the name of the file, and as an argument of every verb."""
    text = TEXTS[name]
    np.savez(tmp_path / "x.npz", data=text)
    with pytest.raises(ValueError, match=r"x\.npz: data must be integers or floats, not text$"):
        load_dataset(tmp_path / "x.npz")
    for verb in (sdediff.solve, sdediff.encode, sdediff.log_likelihood, sdediff.elbo, sdediff.bits_per_dim):
        with pytest.raises(ValueError, match=r"must be a float tensor \(B, \*shape\), not a NumPy array of text$"):
            verb(MODEL, text)  # type: ignore[operator]
    with pytest.raises(ValueError, match="betas must be a list of numbers, not "):
        sdediff.DDPM(text)


def test_arrays_of_numbers_are_told_how() -> None:
    with pytest.raises(ValueError, match=r"not a NumPy array of float64; torch\.from_numpy makes a tensor of it$"):
        sdediff.encode(MODEL, X.numpy())  # type: ignore[arg-type]


# ---- what the rest stands on ---------------------------------------------------------------------------------------


def test_no_two_uses_of_the_noise_share_a_stream() -> None:
    assert len(Stage.__members__) == len(set(Stage))
    signs = [sign_step(draw, replicate) + i for draw in (0, 1) for replicate in (0, 1) for i in (0, 1)]
    probes = [probe_step(draw, node, probe) for draw in (0, 1) for node in (0, 7) for probe in (0, 1, 5)]
    assert len({*signs, *probes}) == len(signs) + len(probes)


def test_shift_or_scale_alone() -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    shifted, scaled = sdediff.DataInfo((2,), shift=(1.0, 2.0)), sdediff.DataInfo((2,), scale=(2.0, 4.0))
    assert to_model(x, shifted).tolist() == [[2.0, 2.0]]
    assert to_data(x, shifted).tolist() == [[4.0, 6.0]]
    assert to_model(x, scaled).tolist() == [[1.5, 1.0]]
    assert log_scale(shifted) == 0.0
    assert log_scale(scaled) == pytest.approx(np.log(8.0))


def test_a_subset_has_every_option_of_its_kind() -> None:
    given = dict.fromkeys(SolveOptions.__annotations__, 1)
    assert dict(subset({**given, "other": 2}, SolveOptions)) == given


def test_effects_of_unknown_noise_do_not_count() -> None:
    one = torch.ones(1, dtype=torch.float64)
    budget = ErrorBudget({"probes": 0.1 * one}, {"quadrature": 9.0 * one, "t_min": -0.2 * one}, values=one)
    assert budget.beyond_noise("quadrature") == 0.0
    assert budget.beyond_noise("t_min") == pytest.approx(0.2)
