"""Training of autoencoders, VAEs and latent models: known optima, resumption, the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import sdediff
from sdediff import latent
from sdediff.cli import main
from sdediff.data import Dataset
from sdediff.types import DataInfo

DIM, CODE = 8, 3
QUICK: dict[str, Any] = {"progress": False, "device": "cpu", "sample_every": 0}


def rows(count: int = 4000) -> Tensor:
    """Draws of a linear-Gaussian model with three directions."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(DIM, CODE, generator=draw) * torch.tensor([2.0, 1.5, 1.0])
    return torch.randn(count, CODE, generator=draw) @ weight.T + 0.5 * torch.randn(count, DIM, generator=draw)


def probabilistic_pca(x: Tensor) -> tuple[Tensor, float]:
    """Axes and mean log-likelihood at the maximum (Tipping & Bishop 1999, eqs. 7 and 8)."""
    variances, axes = torch.linalg.eigh(torch.cov(x.double().T, correction=0))
    noise = variances[: DIM - CODE].mean()
    log_det = variances[DIM - CODE :].log().sum() + (DIM - CODE) * noise.log()
    return axes[:, DIM - CODE :], -0.5 * float(DIM * math.log(2.0 * math.pi) + log_det + DIM)


def test_linear_vae_becomes_probabilistic_pca() -> None:
    """The bound is within 0.01 nats a dimension of the maximum likelihood, the axes within 2 degrees of PCA's."""
    x = rows()
    info = DataInfo((DIM,))
    vae = latent.build_first_stage("vae", info, code=(CODE,), coder="linear")
    data, settings = Dataset(x, x[:500], info), {"batch_size": 256, "learning_rate": 3e-2, "weight_decay": 0.0, **QUICK}
    run = sdediff.train(data, network=vae, steps=3000, **settings)
    axes, best = probabilistic_pca(x)
    found = latent.elbo(run.model, x, samples=8)
    assert abs(found.mean + best) / DIM < 0.01
    span, _ = torch.linalg.qr(run.model.decoder.layer.weight.detach().double())
    angle = math.degrees(math.acos(min(1.0, float(torch.linalg.svdvals(span.T @ axes).min()))))
    assert angle < 2.0
    before = latent.elbo(vae, x)
    assert abs(before.mean + best) / DIM > 0.1  # it was learned


@pytest.mark.parametrize("kind", ["vae", "ae", "latent"])
def test_resumed_runs_are_equal(kind: str, tmp_path: Path) -> None:
    x = (rows(200) > 0.0).long()
    settings: dict[str, Any] = {
        "model": kind, "code": (2,), "batch_size": 16, "schedule": "constant", **QUICK,
        "first_stage_steps": 4, "network": "mlp" if kind == "latent" else "auto",
    }  # fmt: skip
    whole = sdediff.train(x, run=tmp_path / "a", steps=8, **settings)
    sdediff.train(x, run=tmp_path / "b", steps=5, **settings)
    resumed = sdediff.train(x, run=tmp_path / "b", steps=8, resume=True, **settings)
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.steps == 8
    loaded = sdediff.load(tmp_path / "b")
    for a, b in zip(loaded.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_and_joint_first_stages() -> None:
    x = (rows(200) > 0.0).long()
    vae = sdediff.train(x, model="vae", code=(2,), steps=5, batch_size=16, **QUICK).model
    settings: dict[str, Any] = {
        "steps": 5,
        "batch_size": 16,
        "time_law": "velocity",
        "weighting": "likelihood",
        **QUICK,
    }
    frozen, joint = (
        sdediff.train(x, network=vae, model="latent", joint=joint, **settings).model for joint in (False, True)
    )
    before = torch.cat([p.flatten() for p in vae.parameters()])
    stages = [torch.cat([p.flatten() for p in m.first_stage.parameters()]) for m in (frozen, joint)]
    assert torch.equal(stages[0], before)
    assert not torch.equal(stages[1], before)
    codes = frozen.to_codes(x)
    assert 0.1 < float(codes.std()) < 1.5
    with pytest.raises(ValueError, match="likelihood"):
        sdediff.train(x, network=vae, model="latent", joint=True, steps=1, **QUICK)
    with pytest.raises(ValueError, match="other data"):
        sdediff.train(x[:, :4], network=vae, model="latent", steps=1, **QUICK)


def test_conditions_are_of_score_models() -> None:
    x = (rows(50) > 0.0).long()
    for kind in ("vae", "latent"):
        with pytest.raises(ValueError, match="only score models are told"):
            sdediff.train(x, model=kind, condition=torch.arange(50) % 3, steps=1, **QUICK)


def test_warm_up_of_the_divergence() -> None:
    """At weight 0 the posteriors are those of an autoencoder: far narrower than those at weight 1."""
    x = rows(500)
    narrow, wide = (
        sdediff.train(x, model="vae", code=(2,), steps=150, batch_size=64, beta_warmup=warmup, **QUICK).model
        for warmup in (10**6, 0)
    )
    stds = [float(m.posterior(m.values(x)).log_std.detach().mean()) for m in (narrow, wide)]
    assert stds[0] < stds[1] - 0.5


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(line: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == code, result.output
        return result.output

    small = "--steps 3 --batch-size 8 --set latent.code=[4] --set training.sample_every=0"
    run(f"train --model vae --run v {small}")
    assert "variational autoencoder, codes (4,)" in run("info --run v")
    run("sample --run v -n 3 --steps 3")
    run("encode --run v -n 3 --codes")
    run("decode v/latents/codes.npz --run v")
    run("encode --run v -n 3 --steps 3 --solver ddim")
    run("decode v/latents/latents.npz --run v")
    assert "bound of both stages" in run("likelihood --run v -n 4 --samples 3 --bound importance --out v.csv")
    run(f"train --model latent --first-stage v --run l {small}")
    assert "score model on codes" in run("info --run l")
    run("sample --run l -n 3 --steps 3")
    assert "bound of both stages" in run("likelihood --run l -n 3 --steps 5")
    run("likelihood --run l -n 3 --elbo")
    run("interpolate --run l --pair 0 1 --steps 3 --solver ddim")
    run(f"train --model ae --run a {small}")
    for line in ("sample --run a", "likelihood --run a", "encode --run a"):
        assert "no law" in run(line, 2)
    run("encode --run a -n 3 --codes")
    run("decode a/latents/codes.npz --run a")
