"""The site: its code runs, its links lead somewhere, its tables are the library's, its commands are valid."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import click
import pytest

import sdediff
from pages import BLOCK, DOCS, FENCED, PAGES, ROOT, SHELL, broken_links, run_blocks
from sdediff.cli import main
from sdediff.cli.tables import cost
from sdediff.conditioning import CONDITIONINGS
from sdediff.config import Config, build
from sdediff.networks import SIZES, parameter_count
from sdediff.training import OBJECTIVES, TIME_LAWS, WEIGHTINGS, Objective
from sdediff.types import DataInfo

TEXT = (DOCS / "training.md").read_text(encoding="utf-8")
SHELLS = [
    line
    for page in (*PAGES, ROOT / "README.md")
    for block in SHELL.findall(page.read_text())
    for line in block.splitlines()
]
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()]


def table() -> str:
    """Sizes of the networks, and their weights for two shapes."""
    rows = ["| network | size | parameters | weights for (1, 8, 8) | for (3, 32, 32) |", "|---|---|---|---|---|"]
    for name, sizes in SIZES.items():
        for size, made in sizes.items():
            parameters = ", ".join(f"{key}={value}" for key, value in made._asdict().items())
            counts = " | ".join(f"{parameter_count(name, size, shape):,}" for shape in ((1, 8, 8), (3, 32, 32)))
            rows.append(f"| `{name}` | `{size}` | `{parameters}` | {counts} |")
    return "\n".join(rows)


def test_the_table_of_networks_is_current() -> None:
    found = re.search(r"<!-- networks -->\n(\|.*?\|)\n\n", TEXT, flags=re.DOTALL)
    assert found, f"the page lacks the table:\n{table()}"
    assert found.group(1) == table(), f"the page's table should be:\n{table()}"


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("sdediff train")])
def test_commands_are_valid(command: str) -> None:
    """The settings of each make a model and an objective."""
    words = shlex.split(command)
    settings = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")
    config = Config().updated(settings)
    build(config, DataInfo((1, 8, 8), 17))
    training = config.training
    model = build(config, DataInfo((2,)))
    Objective(model.sde, training.time_law, config.weighting, training.objective)


def test_every_entry_is_mentioned() -> None:
    for tables in (TIME_LAWS, WEIGHTINGS, OBJECTIVES):
        for name in set(tables) - {"denoising"}:
            assert re.search(rf"[=`]{name}\b", TEXT), name


def named(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=str(page.relative_to(DOCS))) for page in pages]


@pytest.mark.filterwarnings("default")  # a page warns as it would warn its reader
@pytest.mark.parametrize("page", named([page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]))
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_broken_links_are_found(tmp_path: Path) -> None:
    """The negative control."""
    (tmp_path / "a.md").write_text("# One two\n[x](#one-two) [x](b.md) [x](#three) [x](https://example.org)")
    assert broken_links(tmp_path / "a.md") == ["b.md", "#three"]


@pytest.mark.parametrize("line", sorted({line for line in SHELLS if re.match(r"sdediff \w", line)}))
def test_options_exist(line: str) -> None:
    """The commands of the site, and every option that it gives them."""
    _, command, *words = shlex.split(line, comments=True)
    found = main.get_command(click.Context(main), command)
    assert found is not None
    options = {name for parameter in found.params for name in parameter.opts}
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= options


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


def test_the_table_of_samplers_is_current() -> None:
    text = (DOCS / "howto" / "samplers.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- samplers -->\n(\|.*?\|)\n\n", text, flags=re.DOTALL)
    assert found, f"the page lacks the table:\n{sampler_table()}"
    assert found.group(1) == sampler_table(), f"the page's table should be:\n{sampler_table()}"


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in sdediff.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_names_of_solvers_and_grids_exist() -> None:
    """Those that the page for users of other libraries gives in quotes."""
    text = (DOCS / "coming-from.md").read_text(encoding="utf-8")
    known = {*sdediff.samplers.SOLVERS, *sdediff.GRIDS, *sdediff.PREDICTIONS, *CONDITIONINGS}
    assert set(re.findall(r'"([a-z0-9+_-]+)"', FENCED.sub("", text))) <= known
