"""Units are a change of coordinates and nothing else: with shift m and scale s, every verb says of ``x = m + s z`` what
the model without units says of z, and densities differ by the sum of log s."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import sdediff
from catalogue import GAUSSIAN, MIXTURE, PROCESSES
from sdediff import Clip, DataInfo, Denoiser, Given, Level, ScoreModel, Threshold
from sdediff.analytic import GaussianMixture
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.data import TOYS, Dataset, DataWarning, load_dataset, standardised, to_data, to_model
from sdediff.training import train
from sdediff.training.batches import Batches, held_out_batch
from sdediff.training.folder import in_saved_units

COUNT = 7
SHIFT, SCALE = (5000.0, -3.0), (1000.0, 1e-2)
M, S = torch.tensor(SHIFT, dtype=torch.float64), torch.tensor(SCALE, dtype=torch.float64)
LOG_S = math.log(1000.0 * 1e-2)
INFO = DataInfo((2,), name="rows")
UNITS = INFO._replace(shift=SHIFT, scale=SCALE)


class Labelled(nn.Module):
    """The velocities of two exact denoisers, each item's by its label."""

    def __init__(self, *parts: Denoiser) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, level: Level, label: Tensor) -> Tensor:
        found = torch.stack([part(x, level).mix(-level.sin, level.cos) for part in self.parts])
        return found[label, torch.arange(len(x))]


LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0])
PROBLEMS: dict[str, tuple[GaussianMixture, bool]] = {
    "gaussian": (GAUSSIAN, False),
    "mixture": (MIXTURE, False),
    "under a condition": (MIXTURE, True),
}
PROBLEM = [("gaussian", "flow"), ("mixture", "vp"), ("mixture", "ddpm"), ("under a condition", "vp")]


def model_of(problem: str, process: str, info: DataInfo) -> ScoreModel:
    (law, conditional), sde = PROBLEMS[problem], PROCESSES[process]
    model = law.model(sde)
    if conditional:
        network = Labelled(GAUSSIAN.model(sde), law.model(sde))
        model = ScoreModel(network, sde, "v_prediction", conditioning="level", moments=law.moments)
    model.data = info
    return model


def both(problem: str, process: str) -> tuple[ScoreModel, ScoreModel, dict[str, Any]]:
    """The model without units, the one with, and the options of the call."""
    plain, turned = (model_of(problem, process, info) for info in (INFO, UNITS))
    return plain, turned, {"condition": LABELS} if PROBLEMS[problem][1] else {}


def rows(seed: int = 0) -> Tensor:
    return MIXTURE.sample(COUNT, seed=seed)


def close(x: Tensor, y: Tensor, scale: Tensor | float = 1.0) -> bool:
    """Whether two results are the same to rounding, that of 5000 + 1000 z, magnified by a solve."""
    return x.shape == y.shape and x.dtype == y.dtype and bool(((x - y) / scale).abs().max() < 1e-8)


# ---- every verb ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("problem", "process"), PROBLEM)
@pytest.mark.parametrize("solver", ["ode", "sde", "heun"])
@pytest.mark.parametrize("size", [None, 3])
def test_sample(problem: str, process: str, solver: str, size: int | None) -> None:
    plain, turned, told = both(problem, process)
    options = {"steps": 6, "dtype": torch.float64, "seed": 4, **told}
    z = sdediff.sample(plain, (COUNT, 2), solver, **options)
    x = sdediff.sample(turned, (COUNT, 2), solver, batch_size=size, **options)
    assert close(x, M + S * z, S)


@pytest.mark.parametrize(("problem", "process"), PROBLEM)
@pytest.mark.parametrize("size", [None, 3])
def test_sample_with_its_density(problem: str, process: str, size: int | None) -> None:
    plain, turned, told = both(problem, process)
    options = {"steps": 8, "dtype": torch.float64, "return_log_prob": True, **told}
    z, of_z = sdediff.sample(plain, (COUNT, 2), **options)
    x, of_x = sdediff.sample(turned, (COUNT, 2), batch_size=size, **options)
    assert close(x, M + S * z, S)
    assert close(of_x, of_z - LOG_S)


LIKELIHOODS: dict[str, dict[str, Any]] = {
    "steps": {"steps": 10},
    "by default": {},
    "batches": {"steps": 10, "batch_size": 3},
    "probes": {"steps": 10, "trace": "hutchinson"},
    "adaptive": {"rtol": 1e-3},
    "target": {"steps": 10, "target_error": 1e-3},
}


@pytest.mark.parametrize(("problem", "process"), PROBLEM)
@pytest.mark.parametrize("way", LIKELIHOODS)
def test_log_likelihood(problem: str, process: str, way: str) -> None:
    """The density, its interval and what its errors are compared with; the errors and the latents stay."""
    plain, turned, told = both(problem, process)
    z, options = rows(), LIKELIHOODS[way] | told
    of_z, of_x = (sdediff.log_likelihood(m, x, **options) for m, x in ((plain, z), (turned, M + S * z)))
    assert close(of_x.log_prob, of_z.log_prob - LOG_S)
    assert close(of_x.error_budget.values, of_x.log_prob)
    for end_x, end_z in zip(of_x.interval(), of_z.interval(), strict=True):
        assert close(end_x, end_z - LOG_S)
    assert close(of_x.latent, of_z.latent)
    for name, part in of_z.error_budget.parts.items():
        assert close(of_x.error_budget.parts[name], part), name


@pytest.mark.parametrize(("problem", "process"), PROBLEM)
@pytest.mark.parametrize("options", [{"steps": 9}, {"steps": 9, "batch_size": 3}, {"steps": math.inf, "draws": 8}])
def test_elbo(problem: str, process: str, options: dict[str, Any]) -> None:
    plain, turned, told = both(problem, process)
    z = rows()
    of_z, of_x = (sdediff.elbo(m, x, **options, **told) for m, x in ((plain, z), (turned, M + S * z)))
    assert close(of_x.total, of_z.total + LOG_S)
    assert close(of_x.prior, of_z.prior)
    assert close(of_x.diffusion, of_z.diffusion)
    assert torch.allclose(of_x.standard_error, of_z.standard_error, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("problem", "process"), PROBLEM)
@pytest.mark.parametrize("solver", ["ode", "reversible"])
def test_encode_and_decode(problem: str, process: str, solver: str) -> None:
    """Latents are the plain model's; data come back, from a state and from the states of a reversible solve."""
    plain, turned, told = both(problem, process)
    z, options = rows(), {"steps": 6, **told}
    x = M + S * z
    latents = sdediff.encode(turned, x, solver, **options)
    assert close(latents, sdediff.encode(plain, z, solver, **options))
    drawn = latents.flip(0) if "condition" not in told else latents
    assert close(
        sdediff.decode(turned, drawn, solver, **options), M + S * sdediff.decode(plain, drawn, solver, **options), S
    )
    accurate = {"rtol": 1e-9, **told} if solver == "ode" else options
    back = sdediff.decode(turned, sdediff.encode(turned, x, solver, **accurate), solver, **accurate)
    assert bool(((back - x) / S).abs().max() < 1e-5)
    if solver == "reversible":  # from plain latents, to states at the data's end, and back
        states = sdediff.decode(turned, latents[:, 0], solver, **options)
        assert close(sdediff.encode(turned, states, solver, **options), latents[:, 0])


@pytest.mark.parametrize(("problem", "process"), PROBLEM)
@pytest.mark.parametrize("solver", ["ode", "reversible"])
def test_interpolate(problem: str, process: str, solver: str) -> None:
    plain, turned, told = both(problem, process)
    z_a, z_b, options = rows(), rows(1), {"steps": 6, **told}
    between = sdediff.interpolate(plain, z_a, z_b, 4, solver, **options)
    assert close(sdediff.interpolate(turned, M + S * z_a, M + S * z_b, 4, solver, **options), M + S * between, S)


def test_gradients_are_with_respect_to_the_data_given() -> None:
    plain, turned, _ = both("mixture", "vp")
    z = rows().requires_grad_()
    x = (M + S * rows()).requires_grad_()
    for model, point in ((plain, z), (turned, x)):
        sdediff.log_likelihood(model, point, steps=6, differentiable=True).log_prob.sum().backward()
    assert z.grad is not None
    assert x.grad is not None
    assert close(x.grad * S, z.grad)


@pytest.mark.parametrize("units", [UNITS, UNITS._replace(shift=None), UNITS._replace(scale=None)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_turning_there_and_back(units: DataInfo, dtype: torch.dtype) -> None:
    """In the dtype given, to its rounding; a shift or a scale alone will do."""
    x = (M + S * rows()).to(dtype)
    back = to_data(to_model(x, units), units)
    assert back.dtype == dtype
    for turn in (to_model, to_data):  # worked out in double precision, and rounded once
        assert torch.equal(turn(x, units), turn(x.double(), units).to(dtype))
    assert bool(((back - x).abs() <= 4.0 * torch.finfo(dtype).eps * (x.abs() + M.abs())).all())
    assert to_model(x, INFO) is x is to_data(x, INFO) is to_model(x, None)


def test_samples_in_half_precision_are_turned_before_they_are_rounded() -> None:
    """Where the first sample lies at 0 and z far from it, rounding z first would cost 0.1 and more."""
    plain, turned, _ = both("gaussian", "vp")
    z = sdediff.sample(plain, (COUNT, 2), steps=4, dtype=torch.float32)
    assert bool(((z.half().float() - z)[0].abs() > 1e-4).any())
    turned.data = INFO._replace(shift=tuple((-1000.0 * z[0].double()).tolist()), scale=(1000.0, 1000.0))
    x = sdediff.sample(turned, (COUNT, 2), steps=4, dtype=torch.float16)
    assert x.dtype == torch.float16
    assert float(x[0].abs().max()) < 1e-3


def test_wrappers_are_in_the_models_coordinates() -> None:
    """A range must be given, for the usual one is that of levels; what is said then is the plain model's, turned."""
    plain, turned, _ = both("mixture", "vp")
    for wrapper in (Clip, Threshold):
        for given in ({}, {"low": -1.0}, {"high": 1.0}):
            with pytest.raises(ValueError, match="give low and high in the model's coordinates"):
                wrapper(turned, **given)
        z, x = (
            sdediff.sample(wrapper(m, low=-0.5, high=0.5), (COUNT, 2), steps=5, dtype=torch.float64)
            for m in (plain, turned)
        )
        assert close(x, M + S * z, S)
    model, turned, told = both("under a condition", "vp")
    z, x = (
        sdediff.log_likelihood(Given(m, told["condition"]), y, steps=5).log_prob
        for m, y in ((model, rows()), (turned, M + S * rows()))
    )
    assert close(x, z - LOG_S)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scale": (1.0, 0.0)}, "a scale finite and above 0"),
        ({"scale": (1.0, -2.0)}, "a scale finite and above 0"),
        ({"shift": (0.0, math.nan)}, "a shift must be finite"),
        ({"shift": (0.0,)}, "as many shifts and scales, not 1 and 2"),
        ({"levels": 4}, "only continuous rows"),
    ],
)
def test_units_that_are_none_are_refused(changed: dict[str, Any], words: str) -> None:
    model = GAUSSIAN.model(PROCESSES["vp"])
    model.data = UNITS._replace(**changed)
    with pytest.raises(ValueError, match=words):
        sdediff.sample(model, (2, 2), steps=2)


def test_integers_are_refused_where_rows_have_units() -> None:
    model = model_of("gaussian", "vp", UNITS)
    x = torch.ones(3, 2, dtype=torch.int64)
    for call in (sdediff.log_likelihood, sdediff.elbo, sdediff.bits_per_dim):
        with pytest.raises(ValueError, match=r"give floats, not torch\.int64"):
            call(model, x, **({"levels": 4} if call is sdediff.bits_per_dim else {"data": INFO._replace(levels=4)}))
    with pytest.raises(ValueError, match=r"items have shape \(2,\), not \(3,\)"):
        sdediff.encode(model, torch.ones(3, 3))


# ---- files -----------------------------------------------------------------------------------------------------------

SMALL = {"network.width": 8, "network.blocks": 1, "training.sample_every": 0, "training.held_out_every": 0}


def test_a_model_keeps_its_units(tmp_path: Path) -> None:
    model = build(Config().updated({**SMALL, "network.name": "mlp"}), UNITS, GAUSSIAN.moments)
    sdediff.save(model, tmp_path)
    loaded = sdediff.load(tmp_path)
    assert loaded.data == UNITS
    x = torch.tensor([[4000.0, -3.001]])
    assert torch.equal(sdediff.sample(model, (3, 2), steps=3), sdediff.sample(loaded, (3, 2), steps=3))
    one, two = (sdediff.log_likelihood(m.eval(), x, steps=3).log_prob for m in (model, loaded))
    assert torch.equal(one, two)


def test_a_model_without_units_is_written_as_before(tmp_path: Path) -> None:
    sdediff.save(build(Config().updated({**SMALL, "network.name": "mlp"}), INFO), tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["data"].keys() == {
        "shape",
        "levels",
        "low",
        "high",
        "name",
    }
    assert sdediff.load(tmp_path).data == INFO


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": [1.0, 0.0]},
        {"scale": [1.0, -1.0]},
        {"scale": [1.0]},
        {"shift": [0.0, 0.0, 0.0]},
        {"shift": ["a", 0.0]},
        {"levels": 4},
        {"scale": 2.0},
    ],
)
def test_damaged_units_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    sdediff.save(build(Config().updated({**SMALL, "network.name": "mlp"}), UNITS), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    description["data"] |= wrong
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="is damaged: ") as caught:
        sdediff.load(tmp_path)
    assert "\n" not in str(caught.value)


# ---- data and training -----------------------------------------------------------------------------------------------


def table(seed: int = 0, n: int = 60) -> np.ndarray:
    """A table in natural units, with a column of one value."""
    z = np.random.default_rng(seed).standard_normal((n, 3))
    return np.concatenate([z * [1e3, 1.0, 1e-3] + [5e3, 0.0, 0.0], np.full((n, 1), 7.0)], axis=1).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", table())
    return tmp_path / "rows.npy"


@pytest.mark.filterwarnings("ignore:.*hold one value only")
def test_rows_of_a_file_are_standardised_by_the_training_part(file: Path) -> None:
    data = load_dataset(file)
    z = to_model(data.train.double(), data.info)
    assert torch.allclose(z.mean(0), torch.zeros(4).double(), atol=1e-9)
    assert torch.allclose(z.std(0, correction=0), torch.tensor([1.0, 1.0, 1.0, 0.0]).double(), rtol=1e-9)
    assert data.info.scale is not None
    assert data.info.scale[3] == 1.0
    everything = to_model(torch.cat([data.train, data.held_out]).double(), data.info)
    assert not torch.allclose(
        everything.mean(0)[:3], torch.zeros(3).double(), atol=1e-3
    )  # the held-out part counts not
    assert "columns standardised inside" in str(data)
    assert {tuple(row) for row in table().tolist()} == {
        tuple(row) for row in torch.cat([data.train, data.held_out]).tolist()
    }


def test_what_is_no_table_of_a_file_keeps_its_units(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((9, 1, 4, 4), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "levels.npy", np.arange(40, dtype=np.uint8).reshape(10, 4))
    for name in (*TOYS, "digits", tmp_path / "images.npy", tmp_path / "levels.npy"):
        info = load_dataset(name).info
        assert (info.shift, info.scale) == (None, None), name
        assert "standardised" not in str(load_dataset(name))


def test_units_are_only_spoken_of_where_they_matter(file: Path) -> None:
    with pytest.warns(DataWarning) as caught:
        assert load_dataset(file).info.scale is not None
    assert ["far from unit size" in str(warning.message) for warning in caught] == [False]  # the constant column
    with pytest.warns(DataWarning) as caught:
        assert load_dataset(file, standardise=False).info.scale is None
    assert "2 of 4 columns are far from unit size: 0 (" in str(caught[1].message)
    assert "leave data.standardise on, or train on (x - mean) / deviation" in str(caught[1].message)


def test_training_on_rows_is_training_on_standardised_rows(tmp_path: Path) -> None:
    """The same batches, moments, weights and losses, bit for bit; a run resumed keeps the coordinates it began with."""
    x = torch.from_numpy(table()[:, :3])
    info = standardised(x[:40], DataInfo((3,), name="rows"))
    rows = Dataset(x[:40], x[40:], info)
    turned = Dataset(to_model(x[:40], info), to_model(x[40:], info), info._replace(shift=None, scale=None))
    for draw in (lambda d: Batches(d.train, d.info, 8, 0)(3), lambda d: held_out_batch(d.held_out, d.info, 0)):
        assert all(torch.equal(a, b) for a, b in zip(draw(rows), draw(turned), strict=True))
    config = Config().updated({**SMALL, "network.name": "mlp", "training.steps": 3, "training.batch_size": 8})
    results = [train(config, tmp_path / f"{i}", data=data, progress=False) for i, data in enumerate((rows, turned))]
    assert results[0].held_out_loss == results[1].held_out_loss
    models = [result.model for result in results]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))
    moments = [m.moments for m in models]
    assert torch.equal(*(m.variances for m in moments if m is not None))
    assert torch.equal(
        sdediff.sample(models[0], (4, 3), steps=3), to_data(sdediff.sample(models[1], (4, 3), steps=3), info)
    )
    for i, (data, begun) in enumerate(((turned, info), (rows, turned.info))):
        assert in_saved_units(data, tmp_path / f"{i}").info == begun


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.filterwarnings("ignore::sdediff.data.DataWarning")
def test_the_configuration_has_a_switch(file: Path, tmp_path: Path, on: bool) -> None:
    changes = {"data.name": str(file), "data.standardise": str(on).lower(), "training.steps": 1, "network.name": "mlp"}
    model = train(Config().updated({**SMALL, **changes}), tmp_path / "run", progress=False).model
    assert model.data is not None
    assert (model.data.scale is not None) == on


def test_the_command_line_speaks_the_units_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", table()[:, :3])

    def run(*words: str) -> Any:
        result = CliRunner().invoke(main, [*words, "--run", "run", *(["--json"] if words[0] != "info" else [])])
        assert result.exit_code == 0, result.output
        return result

    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    assert (
        "3 columns, continuous; 12 held out; columns standardised inside"
        in run("train", "--data", "rows.npy", "--steps", "2", "--batch-size", "8", *settings).stderr
    )
    assert "continuous, standardised inside" in run("info").stdout
    model, held_out = sdediff.load("run"), load_dataset("rows.npy").held_out
    run("sample", "-n", "5", "--steps", "3", "--out", "s.npz")
    assert np.array_equal(np.load("s.npz")["samples"], sdediff.sample(model, (5, 3), steps=3).numpy())
    found = json.loads(run("likelihood", "--steps", "4", "--out", "l.npz").stdout)
    own = sdediff.log_likelihood(model, held_out, steps=4).log_prob
    assert math.isclose(found["mean"], float(own.mean()), rel_tol=1e-6)
    run("encode", "--out", "z.npz")
    assert torch.allclose(torch.from_numpy(np.load("z.npz")["latents"]), sdediff.encode(model, held_out), atol=1e-4)
    run("decode", "z.npz", "--out", "x.npz")
    assert np.allclose(np.load("x.npz")["samples"], held_out.numpy(), rtol=1e-3, atol=1e-5)
    run("interpolate", "--pair", "0", "1", "--points", "3", "--out", "p.npz")
    assert np.allclose(np.load("p.npz")["samples"][0, 0], held_out[0].numpy(), rtol=1e-3, atol=1e-5)
