"""Pictures of a trained autoencoder, VAE or latent model, in the folder of its run."""

from __future__ import annotations

from pathlib import Path

import torch

from sdediff import plots
from sdediff.data import Dataset
from sdediff.latent import FirstStage, LatentModel, active_units, traverse
from sdediff.noise import NoiseSource, Stage
from sdediff.plots.codes import codes_and_prior, reconstructions

SHOWN, MEASURED = 12, 2000
"""Items whose reconstructions are shown, and items whose codes are."""
COLLAPSED = 0.01
"""Variance of the posterior's mean over the data below which an entry of the code carries nothing."""


def draw_stages(model: FirstStage | LatentModel, data: Dataset, folder: Path) -> list[str]:
    """Draw reconstructions, traversals and the codes beside the prior; return remarks, a line each."""
    stage = model.first_stage if isinstance(model, LatentModel) else model
    x = data.held_out[:SHOWN]
    reconstructions(x, stage.from_codes(stage.to_codes(x)).cpu(), data.info, folder / "reconstructions.png")
    items = data.held_out[:MEASURED]
    with torch.no_grad():
        posterior = stage.posterior(stage.values(items))
    noise = NoiseSource(0, tuple(posterior.mean.shape), dtype=posterior.mean.dtype, device=posterior.mean.device)
    z = posterior.draw(noise.normal(0, Stage.CODES))
    codes_and_prior(model.standardised(z) if isinstance(model, LatentModel) else z, folder / "codes.png")
    plots.sequences(traverse(stage, items), data.info, folder / "traversals.png")
    active = active_units(posterior.mean, COLLAPSED)
    remarks = [f"active units: {int(active.sum())} of {active.numel()}"]
    if not bool(active.all()):
        remarks[0] += "; the others carry nothing: their posterior is the prior"
    if not bool(active.any()):
        remarks.append("posterior collapse: try --set latent.beta_warmup=1000 or --set latent.free_bits=0.05")
    return remarks
