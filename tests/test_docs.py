"""The page on networks and objectives: its table is the library's, its commands are valid settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sdediff.config import Config, build
from sdediff.networks import SIZES, parameter_count
from sdediff.training import OBJECTIVES, TIME_LAWS, WEIGHTINGS, Objective
from sdediff.types import DataInfo

TEXT = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
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
    Objective(model.sde, training.time_law, training.weighting, training.objective)


def test_every_entry_is_mentioned() -> None:
    for tables in (TIME_LAWS, WEIGHTINGS, OBJECTIVES):
        for name in set(tables) - {"denoising"}:
            assert re.search(rf"[=`]{name}\b", TEXT), name
