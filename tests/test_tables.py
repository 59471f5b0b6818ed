"""Tables are live: an entry made later is seen by configuration, checkpoints, command line and likelihoods.

Networks, predictions and conditionings of one's own, with parameters, go through ``build``, ``save`` and ``load`` as
the library's do.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor, nn

import sdediff
from sdediff import SAMPLERS, SDES, VPSDE, DataInfo, ScoreModel, load, save
from sdediff.cli import COMMANDS, main
from sdediff.cli.compare import Several
from sdediff.cli.options import TableName
from sdediff.conditioning import CONDITIONINGS, ByLogSNR, Conditioning
from sdediff.config import PROCESSES, Config, build
from sdediff.data import DATASETS
from sdediff.documents import Named
from sdediff.grids import GRIDS, Power
from sdediff.likelihood.bits_per_dim import BOUNDS
from sdediff.likelihood.bound.stratified import LAWS
from sdediff.likelihood.discrete.decoder import DECODERS
from sdediff.likelihood.discrete.dequantization import DEQUANTISATIONS
from sdediff.likelihood.elbo import CONTROLS
from sdediff.likelihood.flow.hutchinson import PROBES
from sdediff.networks import NETWORKS, Levelled
from sdediff.parametrization import PREDICTIONS, Linear, Velocity
from sdediff.quality import FEATURES, MEASURES
from sdediff.samplers.ancestral import VARIANCES, Ancestral
from sdediff.samplers.heun import Heun
from sdediff.selftest import CHECKS
from sdediff.tables import FilteredTable
from sdediff.training import OBJECTIVES, SCHEDULES, TIME_LAWS, WEIGHTINGS, Objective
from sdediff.training.objective import Mixture
from sdediff.training.schedules import rate_factor
from sdediff.types import Level, Pair, Split

TABLES: dict[str, dict[str, Any]] = {
    "SDES": SDES, "NETWORKS": NETWORKS, "SAMPLERS": SAMPLERS, "PREDICTIONS": PREDICTIONS, "GRIDS": GRIDS,
    "CONDITIONINGS": CONDITIONINGS, "VARIANCES": VARIANCES, "TIME_LAWS": TIME_LAWS, "WEIGHTINGS": WEIGHTINGS,
    "OBJECTIVES": OBJECTIVES, "DATASETS": DATASETS, "DEQUANTISATIONS": DEQUANTISATIONS, "BOUNDS": BOUNDS,
    "PROBES": PROBES, "LAWS": LAWS, "CONTROLS": CONTROLS, "DECODERS": DECODERS,
    "CHECKS": CHECKS, "SCHEDULES": SCHEDULES, "MEASURES": MEASURES, "FEATURES": FEATURES,
}  # fmt: skip


def modules() -> list[Any]:
    """Every module of the library but those that cannot run here: Triton's kernels, where Triton is missing."""
    names = {module.name for module in pkgutil.walk_packages(sdediff.__path__, "sdediff.")}
    names -= {"sdediff.__main__"}
    if importlib.util.find_spec("triton") is None:
        names -= {"sdediff.noise.kernels"}
    return [importlib.import_module(name) for name in sorted(names)]


def containers() -> Iterator[tuple[str, Any]]:
    """What modules hold that may be made from a table, and the tables that options of commands choose from."""
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, Mapping | list | tuple | set | frozenset):
                yield f"{module.__name__}.{name}", value
    for command in COMMANDS:
        for option in importlib.import_module(f"sdediff.cli.{command}").command.params:
            kind = option.type.inner if isinstance(option.type, Several) else option.type
            if isinstance(kind, TableName):
                yield f"sdediff {command} --{option.name}", kind.table
            elif isinstance(kind, click.Choice):
                yield f"sdediff {command} --{option.name}", kind.choices


def copies(table: dict[str, Any], held: Mapping[str, Any]) -> list[str]:
    """Where most names of a table are held, and one that was put into it is not."""
    names = set(table) - {"mine"}
    return [
        where
        for where, value in held.items()
        if value is not table
        and not where.endswith((".TOYS", ".SIZES"))  # tables of their own: functions that draw points, sizes
        and len(names.intersection(name for name in value if isinstance(name, str))) > 0.6 * len(names)
        and "mine" not in value
    ]


@pytest.mark.parametrize("name", TABLES)
def test_no_module_holds_a_copy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, held = TABLES[name], dict(containers())
    monkeypatch.setitem(table, "mine", next(iter(table.values())))
    planted = {"a copy": {**table}, "names": tuple(table), "a part": dict(list(table.items())[1:])}
    for value in (planted["a copy"], planted["a part"]):
        value.pop("mine")
    planted["names"] = tuple(key for key in table if key != "mine")
    assert copies(table, held) == []
    wanted = [where for where in planted if where != "a part" or len(table) > 3]
    assert [where for where in copies(table, planted) if where in wanted] == wanted  # the control


def test_a_part_of_a_table_follows_it() -> None:
    table = {"a": 1, "b": 2}
    part = FilteredTable(table, lambda value: value % 2 == 1)
    assert dict(part) == {"a": 1}
    table |= {"c": 3, "d": 4}
    assert list(part) == ["a", "c"]
    assert len(part) == 2
    assert "d" not in part
    with pytest.raises(KeyError):
        part["b"]


# ---- entries of one's own ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steeper(VPSDE):
    """A process of one's own."""


@dataclass(frozen=True)
class Tilted(Linear):
    """``v`` times a number: a prediction with a parameter."""

    factor: float = 0.5

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        (a, b), (c, d) = Velocity().halves(level)
        return (a, b / self.factor), (c, d / self.factor)

    def target(self, clean: Split, level: Level) -> Tensor:
        return self.factor * Velocity().target(clean, level)

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.ones_like(angle)


@dataclass(frozen=True)
class Stretched(ByLogSNR):
    """lambda times a number: a conditioning with a parameter."""

    factor: float = 1.0

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: sdediff.SDE) -> tuple[Tensor, Tensor]:
        state, told = super().inputs(x, level, dtype, sde)
        return state, self.factor * told


class Own(nn.Module):
    """A network that knows nothing of levels, nor of descriptions."""

    def __init__(self, shape: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape[0] + 1, width), nn.SiLU(), nn.Linear(width, shape[0]))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        moved: Tensor = self.layers(torch.cat([x.movedim(1, -1), told.reshape(-1, *(1,) * (x.ndim - 1)).expand(
            len(x), *x.shape[2:], 1)], -1)).movedim(-1, 1)  # fmt: skip
        return moved


class OwnLevels(Own):
    """A network that can return several tensors like the state."""

    def __init__(self, shape: tuple[int, ...], width: int = 8, outputs: int = 1) -> None:
        super().__init__(shape, width)
        self.layers[2] = nn.Linear(width, outputs * shape[0])


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry of one's own in each table, under the name "mine"."""
    entries: dict[str, Any] = {
        "SDES": Steeper, "NETWORKS": Own, "SAMPLERS": Heun(), "PREDICTIONS": Tilted(), "GRIDS": Power(1.5),
        "CONDITIONINGS": Stretched(), "VARIANCES": 0.5, "TIME_LAWS": TIME_LAWS["uniform"],
        "WEIGHTINGS": lambda sde, level, power=1.0: WEIGHTINGS["simple"](sde, level) ** power,
        "OBJECTIVES": Mixture(denoising=2.0), "DATASETS": DATASETS["digits"],
        "SCHEDULES": lambda step, steps, power=1.0: (1.0 - step / steps) ** power,
    }  # fmt: skip
    for name, entry in entries.items():
        monkeypatch.setitem(TABLES[name], "mine", entry)


MINE = {
    "sde.name": "mine", "network.name": "mine", "model.prediction": "mine", "model.conditioning": "mine",
    "training.time_law": "mine", "training.weighting": "mine", "training.objective": "mine",
    "training.schedule": "mine",
}  # fmt: skip


@pytest.mark.usefixtures("own")
def test_entries_of_ones_own_from_configuration_to_command_line(tmp_path: Path) -> None:
    """Built, saved, read, sampled from and scored by the command line, all by their names."""
    config = Config().updated({**MINE, "sde.beta_max": "9", "network.width": "6"})
    assert Config.of(json.loads(config.to_json())) == config
    model = build(config, DataInfo((1, 4, 4), 5))
    assert isinstance(model.sde, Steeper)
    assert isinstance(model.network, Own)  # few levels: it is left as it is
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.sde == Steeper(beta_max=9.0)
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.epsilon(x, 0.4), again.epsilon(x, 0.4))
    assert {"mine", "ddpm-cosine"} <= set(PROCESSES)
    data = str(tmp_path / "x.npy")
    np.save(data, np.random.default_rng(0).integers(0, 5, (4, 1, 4, 4), dtype=np.uint8))
    common = ["--run", str(tmp_path / "run"), "--device", "cpu", "--force"]
    for arguments in (
        ["sample", *common, "--solver", "mine", "--grid", "mine", "--steps", "3", "-n", "2"],
        ["encode", data, *common, "--solver", "mine", "--grid", "mine", "--steps", "3"],
        ["compare", *common, "--solver", "mine", "--forwards", "4", "--count", "3", "--tolerance", "1e-3"],
        ["likelihood", data, *common[:-1], "--elbo", "--variance", "mine", "--draws", "2"],
        ["info", *common[:2]],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, (arguments, result.output)
    listed = json.loads(CliRunner().invoke(main, ["info", "--list", "--json"]).stdout)
    assert all("mine" in names for names in listed.values())
    assert sdediff.elbo(model, torch.zeros(2, 1, 4, 4, dtype=torch.uint8), steps=3, variance="mine").total.shape == (2,)
    sdediff.sample(model, (2, 1, 4, 4), solver=Ancestral("mine"), steps=3)
    assert Objective(model.sde, "mine", "mine", "mine").mixture == Mixture(denoising=2.0)


SETTINGS: dict[str, tuple[Callable[[Config], object], Any]] = {
    "model.prediction.factor": (lambda c: build(c, DataInfo((2,))).prediction, Tilted(0.25)),
    "model.conditioning.factor": (lambda c: build(c, DataInfo((2,))).interface, Stretched(0.25)),
    "training.objective.denoising": (lambda c: c.training.objective, Named(name="mine", denoising=0.25)),
    "training.weighting.power": (lambda c: c.training.weighting, Named(name="mine", power=0.25)),
    "training.schedule.power": (lambda c: rate_factor(c.training.schedule, 0, 3, 4), 0.25**0.25),
}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("key", SETTINGS)
def test_parameters_are_settings(key: str, tmp_path: Path) -> None:
    config = Config().updated({**MINE, key: "0.25"})
    found, wanted = SETTINGS[key]
    for each in (config, Config.of(json.loads(config.to_json())), config.updated({"training.steps": "3"})):
        assert found(each) == wanted
    name = key.rpartition(".")[0]
    assert found(config.updated({name: "mine"})) != wanted  # naming an entry anew drops its parameters
    for wrong in (f"{name}.shape", "training.steps.x", "model.nothing.x"):
        with pytest.raises(ValueError, match=r"setting|parameters"):
            Config().updated({**MINE, wrong: "1"})


def test_parameters_of_weightings_and_time_laws_reach_the_loss() -> None:
    """Against closed forms: ``min-snr`` clips at gamma, the normal law's draws have its mean and spread."""
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    changes = {"training.weighting": "min-snr", "training.time_law": "logsnr-normal"}
    given = {"training.weighting.gamma": "2", "training.time_law.mean": "0.5", "training.time_law.std": "0.7"}
    training = Config().updated({**changes, **given}).training
    level, weights = Objective(VPSDE(), training.time_law, training.weighting).levels(u)
    assert float(level.half_log_snr.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(level.half_log_snr.std()) == pytest.approx(0.7, abs=5e-3)
    usual, plain = Objective(VPSDE(), training.time_law, "simple").levels(u)
    ratio = weights / plain / (2.0 * torch.exp(-2.0 * usual.half_log_snr)).clamp(max=1.0)
    torch.testing.assert_close(ratio / ratio[0], torch.ones_like(ratio))
    for wrong in ("-1", "0", "nan", "big"):
        with pytest.raises(ValueError, match=r"training\.weighting\.gamma"):
            Config().updated({**changes, "training.weighting.gamma": wrong})
    with pytest.raises(ValueError, match=r"unknown setting training\.time_law\.width; choose one of: mean, std"):
        Config().updated({**changes, "training.time_law.width": "1"})


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("factor", [0.5, 0.25, 3.0])
def test_parameters_survive_saving(factor: float, tmp_path: Path) -> None:
    """Whatever the entry in the table has."""
    info = DataInfo((2,))
    network = build(Config().updated({"network.name": "mine"}), info).network
    model = ScoreModel(network, VPSDE(), Tilted(factor), conditioning=Stretched(2.0 * factor), data=info)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.prediction == Tilted(factor)
    assert again.interface == Stretched(2.0 * factor)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.epsilon(x, 0.4), again.epsilon(x, 0.4))
    plain = ScoreModel(network, VPSDE(), "mine", conditioning="mine", data=info)
    assert torch.equal(model.epsilon(x, 0.4), plain.epsilon(x, 0.4)) == (factor == 0.5)


@pytest.mark.usefixtures("own")
def test_what_a_file_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    network = build(Config(), DataInfo((2,))).network

    @dataclass(frozen=True)
    class Strange(Velocity):
        """With a parameter that is no number."""

        function: Any = None

    class Hidden(Velocity):
        """With a number that is no field."""

        def __init__(self, factor: float) -> None:
            self.factor = factor

    PREDICTIONS["mine"] = Hidden(1.0)
    for prediction, words in (
        (Strange(torch.sin), "only a prediction of the library's table can be saved"),
        (Hidden(2.0), "make it a dataclass"),
    ):
        with pytest.raises(ValueError, match=words):
            save(ScoreModel(network, VPSDE(), prediction), tmp_path / "run")
    PREDICTIONS["mine"] = Strange(torch.sin)
    with pytest.raises(ValueError, match="more than numbers and text"):
        save(ScoreModel(network, VPSDE(), Strange(torch.cos)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_conditioning_may_be_an_object(tmp_path: Path) -> None:
    network, x = build(Config(), DataInfo((2,))).network, torch.zeros(3, 2)
    for name, entry in CONDITIONINGS.items():
        sde = sdediff.DDPM.linear(10) if entry.labels else VPSDE()
        by_name, by_object = (ScoreModel(network, sde, conditioning=each) for each in (name, replace(entry)))
        if name != "level":
            assert torch.equal(by_name.epsilon(x, 0.5), by_object.epsilon(x, 0.5)), name
        save(by_object, tmp_path / name)
        assert load(tmp_path / name).conditioning == name
    with pytest.raises(ValueError, match="unknown conditioning 3; choose one of: time"):
        ScoreModel(network, VPSDE(), conditioning=3)
    with pytest.raises(ValueError, match="unknown prediction 3; choose one of: epsilon"):
        ScoreModel(network, VPSDE(), 3)


@pytest.mark.parametrize("kind", [Own, OwnLevels])
def test_the_exact_layer_is_put_on_top(kind: type[Own], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a network that can return several tensors; whatever it says, data of two levels keep theirs."""
    monkeypatch.setitem(NETWORKS, "mine", kind)
    info = DataInfo((2, 3, 3), 2, -1.0, 1.0)
    model = build(Config().updated({"network.name": "mine"}), info)
    assert isinstance(model.network, Levelled) == (kind is OwnLevels)
    save(model, tmp_path)
    again = load(tmp_path)
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    assert torch.equal(model.epsilon(x, 0.3), again.epsilon(x, 0.3))
    clean = model.denoise(x, 0.2)
    inside = bool((clean.abs() <= 2.0 + 1e-4).all())  # two bins of width 2 about -1 and 1 end at -2 and 2
    assert inside or kind is Own


def test_a_network_with_a_condition_under_the_exact_layer() -> None:
    class Told(OwnLevels):
        def forward(self, x: Tensor, told: Tensor, label: Tensor) -> Tensor:
            return super().forward(x, told + label)

    model = ScoreModel(Levelled(Told((1,), outputs=3), 3), VPSDE(), "v_prediction", conditioning="logsnr")
    x, label = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0, 2.0, 3.0])
    whole = model.given(label).epsilon(x, 0.5)
    for i in range(4):
        torch.testing.assert_close(
            model.given({"label": label[i : i + 1]}).epsilon(x[i : i + 1], 0.5), whole[i : i + 1]
        )


def test_conditionings_are_abstract_or_final() -> None:
    """A conditioning that does not say what the network is asked with is none."""
    with pytest.raises(TypeError, match="abstract"):
        Conditioning()  # type: ignore[abstract]
