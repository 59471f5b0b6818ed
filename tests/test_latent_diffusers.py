"""Latent pipelines of diffusers: read, sampled to pixels, encoded, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import sdediff
from sdediff import interop, latent
from sdediff.cli import main

diffusers = pytest.importorskip("diffusers")


def write_pipeline(folder: Path, kind: str) -> Any:
    """Write a small pipeline of random weights; return its autoencoder."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    coder: Any
    if kind == "vae":
        coder = diffusers.AutoencoderKL(**settings, sample_size=16, scaling_factor=0.5, shift_factor=0.25)
    else:
        coder = diffusers.VQModel(**settings, num_vq_embeddings=8, sample_size=16, scaling_factor=0.5)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    coder.save_pretrained(folder / kind)
    unet.save_pretrained(folder / "unet")
    diffusers.DDPMScheduler(num_train_timesteps=20, clip_sample=False).save_pretrained(folder / "scheduler")
    return coder.eval()


IMAGES = torch.arange(2 * 3 * 256).reshape(2, 3, 16, 16) % 256


@pytest.fixture(params=["vae", "vqvae"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, Any]:
    folder = tmp_path / "pipeline"
    coder = write_pipeline(folder, request.param)
    return folder, coder, sdediff.load(folder)


@torch.no_grad()
def test_codes_and_images_are_those_of_diffusers(pipeline: tuple[Path, Any, Any]) -> None:
    _, coder, model = pipeline
    assert isinstance(model, latent.LatentModel)
    assert model.data == sdediff.DataInfo((3, 16, 16), 256, name="pipeline")
    shift, factor = coder.config.get("shift_factor") or 0.0, coder.config.scaling_factor
    values = IMAGES / 127.5 - 1.0
    found = coder.encode(values)
    raw = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
    assert torch.allclose(model.to_codes(IMAGES), (raw - shift) * factor, atol=1e-5)
    codes = sdediff.sample(model.prior, (2, 4, 8, 8), "ddim", steps=5, seed=1)
    image = coder.decode(codes / factor + shift).sample
    assert torch.allclose(sdediff.sample(model, (2, 3, 16, 16), "ddim", steps=5, seed=1), image, atol=1e-5)


def test_bound_needs_a_law_of_codes(pipeline: tuple[Path, Any, Any]) -> None:
    _, _, model = pipeline
    if isinstance(model.first_stage, latent.VAE):
        assert latent.elbo(model, IMAGES, steps=3, trace="hutchinson").bits_per_dim.shape == (2,)
    else:
        with pytest.raises(ValueError, match="no law"):
            latent.elbo(model, IMAGES)


def test_it_is_described_and_never_saved(pipeline: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, coder, model = pipeline
    result = CliRunner().invoke(main, ["info", "--run", str(folder)])
    assert result.exit_code == 0, result.output
    assert f"diffusers.{type(coder).__name__}" in result.output
    with pytest.raises(ValueError, match="not saved but exported"):
        sdediff.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.json").exists()


def test_export_is_read_again(pipeline: tuple[Path, Any, Any], tmp_path: Path) -> None:
    _, _, model = pipeline
    interop.export(model, tmp_path / "out")
    again = sdediff.load(tmp_path / "out")
    x = sdediff.sample(model, (1, 3, 16, 16), steps=3)
    assert torch.equal(sdediff.sample(again, (1, 3, 16, 16), steps=3), x)
    with pytest.raises(ValueError, match="exported"):
        sdediff.save(model, tmp_path / "run")
    vae = latent.build_first_stage("vae", sdediff.DataInfo((3, 16, 16), 256), code=(4, 4, 4), width=8)
    other = interop.load_folder(tmp_path / "out" / "unet", data=sdediff.DataInfo((4, 4, 4)))
    with pytest.raises(ValueError, match="of diffusers can be exported"):
        interop.export(latent.LatentModel(vae, other), tmp_path / "no")


def test_damaged_autoencoder_is_one_line(pipeline: tuple[Path, Any, Any]) -> None:
    folder, _, _ = pipeline
    place = interop.find_autoencoder(folder)
    assert place is not None
    weights = next(place.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged") as failure:
        sdediff.load(folder)
    assert "\n" not in str(failure.value)
