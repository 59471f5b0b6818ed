"""Results fit a screen whatever they hold, and figures that they do not have are absent, with a reason."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any, NamedTuple, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import sdediff
from sdediff.data import load_dataset
from sdediff.gaussian import Moments
from sdediff.likelihood.result import ErrorBudget
from sdediff.numerics import error_of_mean
from sdediff.types import brief

LINES, WIDTH = 40, 1200
"""A screen; a line wraps a few times."""


class Wide(nn.Module):
    """A network of many layers, whose own text is long."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(200))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers[0](x) * t[:, None]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """One of every kind, with many items."""
    generator = torch.Generator().manual_seed(0)
    data = sdediff.DataInfo((2,), levels=17)
    model = sdediff.ScoreModel(Wide(), sdediff.VPSDE(), data=data).requires_grad_(requires_grad=False)
    chain = sdediff.ScoreModel(Wide(), sdediff.DDPM.linear(1000), data=data).requires_grad_(requires_grad=False)
    floats = torch.randn(60, 2, generator=generator)
    levels = torch.randint(17, (60, 2), generator=generator)
    return {
        "log_likelihood": sdediff.log_likelihood(model, floats, steps=3),
        "log_likelihood of integers": sdediff.log_likelihood(model, levels, steps=3),
        "bits_per_dim": sdediff.bits_per_dim(model, levels, steps=3),
        "bits_per_dim of draws": sdediff.bits_per_dim(model, levels, steps=3, samples=3),
        "elbo": sdediff.elbo(chain, floats, draws=4),
        "solve": sdediff.solve(model, floats, steps=200, t_to=0.5, path=True),
        "model": model,
        "chain": chain,
        "wrapper": sdediff.Clip(sdediff.Threshold(model)),
        "moments": Moments.fit(torch.randn(300, 50, generator=generator)),
        "data set": load_dataset("digits"),
        "comparison": sdediff.compare(model, (3, 2), ("ddim",), forwards=range(2, 12), tolerance=0.1),
    }


def test_a_result_fits_a_screen(results: dict[str, Any]) -> None:
    for name, result in results.items():
        lines = repr(result).splitlines()
        assert len(lines) <= LINES, name
        assert max(map(len, lines)) <= WIDTH, name
        assert "tensor(" not in repr(result), name


def test_results_can_be_looked_into(results: dict[str, Any]) -> None:
    """By tools that ask for every attribute there is: none raises anything but that it is not there."""
    for result in results.values():
        assert dict(inspect.getmembers(result))


def test_a_figure_that_does_not_exist_is_absent_with_a_reason(results: dict[str, Any]) -> None:
    for name, found in {"log_likelihood": False, "elbo": False, "log_likelihood of integers": True}.items():
        assert hasattr(results[name], "bits_per_dim") == found, name
    for name in ("log_likelihood", "elbo"):
        with pytest.raises(ValueError, match="bits/dim exist for integer data only"):
            results[name].bits_per_dim  # noqa: B018
    assert not hasattr(results["log_likelihood"], "no_such_thing")


def test_public_results_with_tensors_are_shown_in_brief() -> None:
    """All of them, so that a new one is noticed."""
    found = []
    for name in sdediff.__all__:
        kind = getattr(sdediff, name)
        if inspect.isclass(kind) and (hasattr(kind, "__dataclass_fields__") or hasattr(kind, "_fields")):
            hints = get_type_hints(kind) if kind is not sdediff.Level else {}
            if any(Tensor in (hint, *getattr(hint, "__args__", ())) for hint in hints.values()):
                found.append(name)
                assert "brief" in (kind.__repr__.__name__, *kind.__repr__.__code__.co_names), name
    assert {"BitsPerDim", "Elbo", "LogLikelihood", "Moments", "Solution"} <= set(found)


@pytest.mark.parametrize(
    "name", ["log_likelihood", "log_likelihood of integers", "bits_per_dim", "bits_per_dim of draws", "elbo"]
)
def test_likelihoods_are_records_alike(results: dict[str, Any], name: str) -> None:
    """Frozen, with an interval about their values, and as JSON with nothing lost but what JSON has no number for."""
    result = results[name]
    values = {"log": "log_prob", "bit": "bits_per_dim", "elb": "total"}[name[:3]]
    with pytest.raises(FrozenInstanceError):
        result.nfe = 0
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert {field.name for field in fields(result)} <= set(found)
    assert found[values] == getattr(result, values).tolist()
    assert found["nfe"] == result.nfe > 0
    if hasattr(result, "error_budget"):
        parts = result.error_budget.to_dict()
        assert found["error_budget"]["solver"] == parts["solver"]
        assert set(found["error_budget"]) == set(parts)
    low, high = result.interval(0.9)
    wide_low, wide_high = result.interval(0.99)
    if bool(result.standard_error.isnan().all()):  # a single draw
        assert found["standard_error"] == [None] * 60
        assert bool((low.isnan() & high.isnan()).all())
    else:
        assert bool(((wide_low <= low) & (low <= getattr(result, values)) & (high <= wide_high)).all())
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="confidence must lie"):
            result.interval(confidence)


class Pair(NamedTuple):
    first: Any
    second: Any


def test_what_is_short_is_shown_whole() -> None:
    assert brief(Pair(1.5, None)) == "Pair(first=1.5, second=None)"
    assert brief(Pair(torch.tensor([1, 2]), torch.zeros(0))) == "Pair(first=int64 [1, 2], second=float32 (0,))"
    half = torch.full((2, 3), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert brief(Pair(half, {"a": half})) == (
        "Pair(first=bfloat16 (2, 3), mean 0.5, second={'a': bfloat16 (2, 3), mean 0.5})"
    )
    assert brief(Pair(torch.tensor(math.nan), "x" * 2000)) == "Pair(first=float32 nan, second=str(...))"


def test_the_error_of_a_mean_is_that_of_a_sample_of_a_population() -> None:
    """Without bias in its square: over all pairs of a few values it is the variance of the pair's mean."""
    values = torch.tensor([0.0, 1.0, 5.0, 7.0], dtype=torch.float64)
    pairs = torch.cartesian_prod(values, values)
    stated = sum(error_of_mean(pair) ** 2 for pair in pairs) / len(pairs)
    assert stated == pytest.approx(float(pairs.mean(dim=1).var(correction=0)), rel=1e-12)
    assert math.isnan(error_of_mean(values[:1]))


def test_intervals_of_a_few_draws_are_student_s(results: dict[str, Any]) -> None:
    """One degree of freedom less than draws, and the systematic size as of a normal law."""
    info = sdediff.DataInfo((6,))
    vae = sdediff.latent.VAE(nn.Linear(6, 4), nn.Linear(2, 6), data=info).requires_grad_(requires_grad=False)
    of_codes = sdediff.latent.elbo(vae, torch.linspace(-1.0, 1.0, 24).reshape(4, 6), samples=3)
    for result in (results["bits_per_dim of draws"], of_codes):
        scale = 1.0 if result is of_codes else result.error_budget.scale  # its interval is in nats
        size = 1.959964 * result.error_budget.systematic_size() / scale
        seen = replace(
            result, standard_error=torch.ones_like(result.standard_error) + size
        )  # of random and systematic errors of one size
        low, high = seen.interval(0.95)
        half = torch.hypot(4.302653 * seen.standard_error, size)  # Student's t of 2 degrees
        torch.testing.assert_close(0.5 * (high - low), half.to(low), rtol=1e-4, atol=0.0)


def test_random_errors_average_out_and_systematic_ones_do_not() -> None:
    """Over n items: the root mean square over the root of n, and the signed mean; both in the unit of the table."""
    parts = torch.tensor([3.0, -4.0, 3.0, -4.0]), torch.tensor([2.0, 2.0, -1.0, 1.0])
    found = ErrorBudget({"probes": parts[0].abs()}, {"t_min": parts[1]}, scale=2.0).to_dict()
    assert found["probes"] == pytest.approx({"item": math.sqrt(12.5) / 2.0, "mean": math.sqrt(12.5 / 4.0) / 2.0})
    assert found["t_min"] == pytest.approx({"item": math.sqrt(2.5) / 2.0, "mean": 0.5})
