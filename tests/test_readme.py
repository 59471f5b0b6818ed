"""The README's examples run, and its table of samplers is the library's."""

import dataclasses
import re
from pathlib import Path

import pytest

import sdediff
from sdediff.cli.tables import cost

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def written(sampler: sdediff.samplers.Sampler) -> str:
    """The call that makes it, without the defaults."""
    given = [f for f in dataclasses.fields(sampler) if getattr(sampler, f.name) != f.default]
    return f"{type(sampler).__name__}({', '.join(f'{f.name}={getattr(sampler, f.name)!r}' for f in given)})"


def sampler_table() -> str:
    rows = ["| name | kind | order | forwards | grid | method |", "|---|---|---|---|---|---|"]
    for name, sampler in sdediff.samplers.SOLVERS.items():
        method = type(sampler).__doc__.splitlines()[0].rstrip(".")
        kind = "SDE" if sampler.stochastic else "ODE"
        order, grid = str(sampler.order), "none" if sampler.adaptive else sampler.grid
        if name == sdediff.samplers.AUTO:  # those of what is chosen
            order, grid = "-", "its own"
        rows.append(f"| `{name}` | {kind} | {order} | {cost(sampler)} | {grid} | `{written(sampler)}`: {method} |")
    return "\n".join(rows)


def test_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 9
    before = dict(sdediff.SAMPLERS)
    try:
        scope: dict[str, object] = {}
        for block in blocks:
            exec(compile(block, str(README), "exec"), scope)
    finally:
        sdediff.SAMPLERS.clear()
        sdediff.SAMPLERS.update(before)
    printed = capsys.readouterr().out
    assert float(re.search(r"round trip (\S+)", printed).group(1)) < 1e-3


def test_sampler_table_is_current():
    found = re.search(r"<!-- samplers -->\n(\|.*?\|)\n\n", TEXT, flags=re.DOTALL)
    assert found, f"the README lacks the table:\n{sampler_table()}"
    assert found.group(1) == sampler_table(), f"the README's table should be:\n{sampler_table()}"


@pytest.mark.parametrize("path", re.findall(r"\]\((docs/[^)]+)\)", TEXT))
def test_pictures_exist(path):
    assert (README.parent / path).stat().st_size > 1000
