"""The examples in the docstrings of the public names: each name has one, and all run."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest
import torch

import sdediff
from sdediff import conditioning, networks, report, selftest, training, tuning

DOCUMENTED = {name: value for name in sdediff.__all__ if callable(value := getattr(sdediff, name))} | {
    f"analytic.{name}": getattr(sdediff.analytic, name) for name in ("Gaussian", "GaussianMixture")
}
DOCUMENTED |= {
    f"tuning.{name}": getattr(tuning, name) for name in ("choose", "ForIntervals", "load_choice", "save_choice")
}
DOCUMENTED |= {f"networks.{name}": getattr(networks, name) for name in ("DiT", "MLP", "UNet", "parameter_count")}
DOCUMENTED |= {f"selftest.{name}": getattr(selftest, name) for name in ("SelfTest", "run")}
DOCUMENTED |= {f"report.{name}": getattr(report, name) for name in ("page", "paragraph", "table")}
DOCUMENTED |= {"report.Section.place": report.Section.place}
DOCUMENTED |= {"training.Objective": training.Objective} | {
    f"conditioning.{name}": getattr(conditioning, name) for name in ("ByEDM", "ByLabel", "ByTime")
}


def failures(name: str, text: str) -> tuple[int, int]:
    """How many examples of a docstring fail, of how many."""
    test = doctest.DocTestParser().get_doctest(text, {"sdediff": sdediff, "torch": torch}, name, None, None)
    result = doctest.DocTestRunner().run(test)
    return result.failed, result.attempted


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, attempted = failures(name, inspect.getdoc(DOCUMENTED[name]) or "")
    assert failed == 0
    assert attempted > 0


def test_wrong_and_missing_examples_are_found() -> None:
    assert failures("wrong", ">>> sdediff.VPSDE().alpha(0.0)\ntensor(2., dtype=torch.float64)") == (1, 1)
    assert failures("missing", "Return nothing.") == (0, 0)
