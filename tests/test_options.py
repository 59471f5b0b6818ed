"""The options that several functions share: described once, named by each, checked by types and at run time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

import sdediff
from sdediff import options
from sdediff.analytic import Gaussian

VERBS = {
    sdediff.solve: options.SolveOptions,
    sdediff.encode: options.SolveOptions,
    sdediff.sample: options.SampleOptions,
    sdediff.log_likelihood: options.LikelihoodOptions,
    sdediff.bits_per_dim: options.LikelihoodOptions,
    sdediff.elbo: options.ElboOptions,
}
CONFIG = """
[mypy]
strict = true
[mypy-sdediff.*]
follow_imports = silent
[mypy-torch.*,numpy.*,scipy.*]
follow_imports = skip
"""
SNIPPET = """
import sdediff
def right(model: sdediff.ScoreModel) -> None:
    sdediff.sample(model, (2, 2), steps=3, seed=1)
    x = sdediff.sample(model, (2, 2), rtol=1e-3, return_log_prob=True)[0]
    sdediff.interpolate(model, x, sdediff.solve(model, x, grid="time").x, steps=3)
def wrong(model: sdediff.ScoreModel) -> None:
    x = sdediff.sample(model, (2, 2), step=3)
    sdediff.solve(model, x, tolerance=1e-3)
    sdediff.encode(model, x, seed=0)
    sdediff.bits_per_dim(model, x, draw=0)
    sdediff.elbo(model, x, seeds=0)
    sdediff.log_likelihood(model, x, probe=3)
"""


@pytest.mark.parametrize("kind", [value for value in vars(options).values() if hasattr(value, "__total__")])
def test_every_option_has_one_description(kind: type) -> None:
    for name in kind.__annotations__:
        assert sum(len(re.findall(rf"^ +{name}: ", text.__doc__ or "", re.M)) for text in vars(options).values()) == 1


@pytest.mark.parametrize(("verb", "kind"), VERBS.items(), ids=lambda value: value.__name__)
def test_every_function_names_its_options(verb: object, kind: type) -> None:
    assert [name for name in kind.__annotations__ if f"``{name}``" not in (verb.__doc__ or "")] == []


def test_unknown_options_are_refused() -> None:
    law = Gaussian([0.0, 0.0], 1.0)
    model, x = law.model(sdediff.VPSDE()), law.sample(2)
    for call in (
        lambda: sdediff.sample(model, (2, 2), step=3),
        lambda: sdediff.solve(model, x, tolerance=1e-3),
        lambda: sdediff.encode(model, x, seed=0),
        lambda: sdediff.log_likelihood(model, x, probe=3),
        lambda: sdediff.elbo(model, x, probes=3),
    ):
        with pytest.raises(TypeError, match=r"unknown option '[a-z]+'; allowed are: "):
            call()


def test_types_refuse_unknown_options(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(CONFIG)
    (tmp_path / "snippet.py").write_text(SNIPPET)
    settings = f"--config-file={tmp_path / 'mypy.ini'}", f"--cache-dir={tmp_path / 'cache'}"
    out, _, _ = api.run([str(tmp_path / "snippet.py"), *settings])
    lines = {int(line) for line in re.findall(r"snippet\.py:(\d+): error", out)}
    assert lines == {8, 9, 10, 11, 12, 13}, out
