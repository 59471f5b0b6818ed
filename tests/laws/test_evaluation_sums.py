"""Sums over a data set: errors by the degrees that are left, time over all runs, terms in the unit of their total."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from catalogue import GAUSSIAN
from sdediff import DDPM, DataInfo, ScoreModel
from sdediff.evaluation import PartialResults, evaluate, mean_and_error
from sdediff.evaluation.dataset import BLOCK, reached
from sdediff.evaluation.methods import LIKELIHOOD_METHODS


def test_the_error_of_a_mean_has_one_degree_less_than_items() -> None:
    """By one item in ``BLOCK``: a target between the two errors tells."""
    values = np.random.default_rng(3).normal(5.0, 2.0, BLOCK)
    right = math.sqrt(float(((values - values.mean()) ** 2).sum()) / (BLOCK - 1) / BLOCK)
    wrong = right * math.sqrt((BLOCK - 1) / BLOCK)
    assert mean_and_error(values)[1] == pytest.approx(right, rel=1e-12)
    assert reached(values, right * (1.0 + 1e-9)) == BLOCK
    assert reached(values, math.sqrt(right * wrong)) is None


def test_seconds_are_those_of_all_runs(tmp_path: Path) -> None:
    def work(x: Tensor, first: int) -> dict[str, Tensor]:
        return {"value": x.double().sum(dim=1)}

    items, part = torch.arange(12.0).reshape(6, 2), PartialResults(tmp_path / "x.part", {})
    half = evaluate(work, items, batch_size=3)
    part.write({name: values[:3] for name, values in half.columns.items()}, 1000.0)
    whole = evaluate(work, items, batch_size=3, partial=part)
    assert whole.done == 6
    assert 1000.0 < whole.seconds < 1500.0


def test_terms_of_the_bound_add_up_to_it_in_its_unit() -> None:
    """Nats for real numbers, bits a dimension for levels; an error in one nat is the same in the other's unit."""
    info = DataInfo((2,), levels=9, low=-2.0, high=2.0)
    exact = GAUSSIAN.model(DDPM.linear(20))
    model = ScoreModel(exact.network, exact.sde, exact.prediction, conditioning="level", data=info)
    levels = torch.tensor([[4, 4], [3, 5], [6, 2]])
    for x, sign, name in ((levels, 1.0, "bits_per_dim"), (GAUSSIAN.sample(3), -1.0, "log_prob")):
        columns = LIKELIHOOD_METHODS["elbo"].evaluate(model if name == "bits_per_dim" else exact, x, 0)
        terms = sum(column for key, column in columns.items() if key.startswith("term_"))
        torch.testing.assert_close(sign * terms, columns[name], rtol=1e-9, atol=1e-9)
        assert float(columns[name].abs().min()) > 0.1
