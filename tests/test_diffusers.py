"""Folders of diffusers: the same epsilon, the same samples, and the same folder back."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

import sdediff
from sdediff import DDPM, VPSDE, DataInfo, NoiseSource, ScoreModel, interop
from sdediff.cli import main
from sdediff.conditioning import ByLabel
from sdediff.interop import DiffusersNetwork, export, scheduled
from test_layers import imports, parsed

# diffusers imports torchvision where there is one, which fails if it was built for another torch; nothing here needs it
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
diffusers = pytest.importorskip("diffusers")

N, SHAPE = 32, (1, 8, 8)
BETAS = {"num_train_timesteps": N, "beta_start": 1e-3, "beta_end": 0.3}


def unet(**settings: Any) -> Any:
    """A tiny network, its weights drawn from a generator of its own; float64."""
    given = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4,
        "attention_head_dim": 4, "add_attention": False,
    }  # fmt: skip
    network = diffusers.UNet2DModel(**{**given, **settings})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def saved(folder: Path, network: Any, scheduler: Any) -> Path:
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def random_betas() -> list[float]:
    return (0.3 * torch.rand(N, generator=torch.Generator().manual_seed(1)) + 1e-3).tolist()


def configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Schedulers by class and settings; one in the real length."""
    for prediction in ("epsilon", "sample", "v_prediction"):
        for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            for kind in ("DDPM", "DDIM"):
                yield kind, {"beta_schedule": schedule, "prediction_type": prediction, "clip_sample": False}
        yield "DDPM", {"beta_schedule": "sigmoid", "prediction_type": prediction}
        yield "DDIM", {"trained_betas": random_betas(), "prediction_type": prediction, "set_alpha_to_one": False}
    for prediction in ("sample", "v_prediction"):
        yield "DDPM", {"rescale_betas_zero_snr": True, "prediction_type": prediction, "timestep_spacing": "trailing"}
    for variance in ("fixed_small_log", "fixed_large", "learned_range"):
        yield "DDPM", {"variance_type": variance}
    yield "DDPM", {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}
    yield "DDPM", {"timestep_spacing": "linspace"}
    yield "DDIM", {"timestep_spacing": "trailing", "clip_sample_range": 0.5}
    yield "DDIM", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    yield "DDPM", {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    yield "PNDM", {"beta_schedule": "scaled_linear", "skip_prk_steps": True}
    yield "DPMSolverMultistep", {"prediction_type": "v_prediction", "use_karras_sigmas": True}
    yield "EulerDiscrete", {"beta_schedule": "scaled_linear"}
    yield "UniPCMultistep", {"prediction_type": "sample"}


CONFIGURATIONS = {
    f"{i}-{kind}-" + "-".join(str(value) for value in settings.values() if not isinstance(value, list)): (
        kind,
        settings,
    )
    for i, (kind, settings) in enumerate(configurations())
}


def scheduler_of(name: str) -> Any:
    kind, settings = CONFIGURATIONS[name]
    return getattr(diffusers, f"{kind}Scheduler")(**{**BETAS, **settings})


def network_for(scheduler: Any) -> Any:
    return unet(out_channels=2 if scheduler.config.get("variance_type") == "learned_range" else 1)


def states(count: int = 3) -> Tensor:
    return NoiseSource(5, (count, *SHAPE), dtype=torch.float64).normal(NoiseSource.START)


def their_epsilon(network: Any, scheduler: Any, x: Tensor, k: int) -> Tensor:
    """Salimans & Ho (2022), from the scheduler's own table, in float64."""
    alpha, sigma = scheduler.alphas_cumprod[k].double().sqrt(), (1.0 - scheduler.alphas_cumprod[k].double()).sqrt()
    output = network(x, k).sample[:, :1]
    return {
        "epsilon": lambda: output,
        "sample": lambda: (x - alpha * output) / sigma,
        "v_prediction": lambda: alpha * output + sigma * x,
    }[scheduler.config.prediction_type]()


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_round_trip(name: str, tmp_path: Path) -> None:
    """Read, written and read again: diffusers' epsilon at every timestep tried, and the very same model."""
    scheduler = scheduler_of(name)
    network = network_for(scheduler)
    model = sdediff.load(saved(tmp_path / "theirs", network, scheduler))
    export(model, tmp_path / "ours")
    again = sdediff.load(tmp_path / "ours")
    assert (again.sde, again.learned_variance) == (model.sde, model.learned_variance)
    assert again.data == DataInfo(SHAPE, 256, -1.0, 1.0, "ours")
    old, new = ((tmp_path / n / "scheduler" / "scheduler_config.json").read_text() for n in ("theirs", "ours"))
    assert json.loads(old) == json.loads(new)
    network, x = network.double(), states()
    for k in (0, 1, N // 2, N - 1):
        t = (k + 1) / model.sde.steps
        torch.testing.assert_close(
            model.double().epsilon(x, t), their_epsilon(network, scheduler, x, k), rtol=1e-6, atol=1e-6
        )
        assert torch.equal(again.double().epsilon(x, t), model.epsilon(x, t))


def with_class(scheduler: Any, kind: str) -> Any:
    """A scheduler of another class on the same chain."""
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    if not scheduler.config.get("rescale_betas_zero_snr"):
        config["trained_betas"] = scheduler.betas.tolist()  # DDIM does not know every schedule of DDPM
    return getattr(diffusers, f"{kind}Scheduler").from_config(config)


@torch.no_grad()
def their_samples(network: Any, scheduler: Any, x: Tensor, steps: int, **options: Any) -> Tensor:
    """Their loop."""
    scheduler.set_timesteps(steps)
    for k in scheduler.timesteps:
        x = scheduler.step(network(x, k).sample, k, x, **options).prev_sample
    return x


def strides(scheduler: Any, steps: int) -> bool:
    """Whether a DDPM scheduler, as in early releases, goes to other timesteps than those that it visits."""
    scheduler.set_timesteps(steps)
    visited = [int(k) for k in scheduler.timesteps]
    return [int(scheduler.previous_timestep(k)) for k in visited[:-1]] != visited[1:]


@pytest.mark.parametrize("name", [n for n, (kind, _) in CONFIGURATIONS.items() if kind in ("DDPM", "DDIM")])
@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_samples(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their loop and ours in 8 steps, from the same start with the same noise."""
    own = scheduler_of(name)
    network = network_for(own)
    model = sdediff.load(saved(tmp_path, network, own)).double()
    theirs, steps = with_class(own, kind), 8
    options: dict[str, Any] = {"use_clipped_model_output": True} if kind == "DDIM" else {}
    if kind == "DDIM" and model.learned_variance:
        pytest.skip("their DDIM takes no learned variance")
    config = {**theirs.config, "_class_name": f"{kind}Scheduler"}
    if theirs.config.timestep_spacing == "linspace" and (kind == "DDIM" or strides(theirs, steps)):
        with pytest.raises(
            ValueError, match=r"ends step 2 at timestep 23 and asks the network at 22: no grid does that"
        ):
            scheduled(model, steps, config)
        return
    plan = scheduled(model, steps, config)
    x, noise, drawn = states(), NoiseSource(3, (3, *SHAPE), dtype=torch.float64), iter(range(steps))
    monkeypatch.setattr(
        sys.modules[type(theirs).__module__], "randn_tensor", lambda *_, **__: noise.normal(next(drawn))
    )
    truth = their_samples(network.double(), theirs, x, steps, **options)
    solution = sdediff.solve(plan.model, x, plan.solver, grid=plan.times, seed=3)
    torch.testing.assert_close(solution.x, truth, rtol=1e-5, atol=1e-5)


def test_a_missing_step_is_caught(tmp_path: Path) -> None:
    """The control: one timestep off, the samples differ a thousandfold more than the tolerance."""
    own = scheduler_of("0-DDPM-linear-epsilon-False")
    network = network_for(own)
    model = sdediff.load(saved(tmp_path, network, own)).double()
    theirs = with_class(own, "DDIM")
    with torch.no_grad():
        truth = their_samples(network.double(), theirs, states(), 8)
    plan = scheduled(model, 8, {**theirs.config, "_class_name": "DDIMScheduler"})
    off = sdediff.solve(plan.model, states(), plan.solver, grid=torch.cat([plan.times[:-2] - 1 / N, plan.times[-1:]])).x
    assert float((off - truth).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_diffusers_reads_what_was_exported(kind: str, tmp_path: Path) -> None:
    """A pipeline of theirs opens the folder and gives the pictures of the original."""
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**BETAS)
    export(sdediff.load(saved(tmp_path / "in", unet(), scheduler)), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == f"{kind}Pipeline"
    assert index["scheduler"] == ["diffusers", f"{kind}Scheduler"]
    pictures = []
    for pipeline in (
        getattr(diffusers, f"{kind}Pipeline")(unet(), scheduler),
        getattr(diffusers, f"{kind}Pipeline").from_pretrained(tmp_path / "out", local_files_only=True),
    ):
        pipeline.set_progress_bar_config(disable=True)
        pictures.append(
            pipeline(generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
        )
    np.testing.assert_allclose(*pictures, rtol=0.0, atol=1e-5)  # float32, and sums in another order


def test_a_model_of_ones_own_is_exported_by_its_betas(tmp_path: Path) -> None:
    """Around a network of diffusers, on any chain: the table of alpha-bar comes back to float32's rounding."""
    model = ScoreModel(DiffusersNetwork.of(unet()), DDPM.cosine(50), "v_prediction", conditioning="label")
    export(model, tmp_path / "out")
    again = sdediff.load(tmp_path / "out")
    assert again.prediction is model.prediction
    instants = model.sde.instants[1:]  # type: ignore[index]
    torch.testing.assert_close(again.sde.log_alpha(instants), model.sde.log_alpha(instants), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        same = torch.equal(
            again.network(states().float(), torch.tensor([3.0])), model.network(states().float(), torch.tensor([3.0]))
        )
    assert same


def test_a_run_saved_from_diffusers_is_whole(tmp_path: Path) -> None:
    """In the library's own format it keeps network, scheduler and chain, so that it can be exported again."""
    folder = saved(tmp_path / "in", unet(), diffusers.DDPMScheduler(**BETAS))
    sdediff.save(sdediff.load(folder), tmp_path / "run")
    again = sdediff.load(tmp_path / "run")
    export(again, tmp_path / "out")
    for name in ("scheduler/scheduler_config.json", "unet/config.json"):
        old, new = (json.loads((f / name).read_text()) for f in (folder, tmp_path / "out"))
        old.pop("_name_or_path", None), new.pop("_name_or_path", None)
        assert old == new
    with torch.no_grad():
        x = states().float()
        assert torch.equal(again.epsilon(x, 0.3), sdediff.load(folder).epsilon(x, 0.3))


def test_learned_variance(tmp_path: Path) -> None:
    """Each step's noise is between the bounds, and without it the sampler says so."""
    own = diffusers.DDPMScheduler(**BETAS, variance_type="learned_range")
    model = sdediff.load(saved(tmp_path / "learned", network_for(own), own)).double()
    split = model.split(states(), 0.5)
    assert split.fraction is not None
    assert split.fraction.shape == (3, *SHAPE)
    fixed = sdediff.load(saved(tmp_path / "fixed", unet(), diffusers.DDPMScheduler(**BETAS)))
    with pytest.raises(ValueError, match="no learned variance; choose one of: posterior, marginal"):
        sdediff.solve(fixed, states(), scheduled(model, 8).solver, steps=4)


def test_the_command_line_knows_learned_variance(tmp_path: Path) -> None:
    own = diffusers.DDPMScheduler(**BETAS, variance_type="learned_range")
    learned = saved(tmp_path / "learned", network_for(own), own)
    fixed = saved(tmp_path / "fixed", unet(), diffusers.DDPMScheduler(**BETAS))
    solver = ["--solver", "ancestral-learned", "-n", "2", "--steps", "3", "--device", "cpu"]
    result = CliRunner().invoke(main, ["sample", "--run", str(learned), *solver])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["sample", "--run", str(fixed), *solver])
    assert result.exit_code == 2
    assert "no learned variance; choose one of: posterior, marginal" in result.output


def test_a_table_of_embeddings_is_asked_for_integers(tmp_path: Path) -> None:
    """At instants by one forward, exactly; between them by two."""
    network = unet(time_embedding_type="learned", num_train_timesteps=N)
    model = sdediff.load(saved(tmp_path, network, diffusers.DDPMScheduler(**BETAS))).double()
    assert model.conditioning == "interpolated"
    x = states()
    with torch.no_grad():
        truth = network.double()(x, 6).sample
        assert torch.equal(model.epsilon(x, 7 / N), truth)
        assert not torch.equal(model.epsilon(x, 6.5 / N), truth)
    assert sdediff.solve(model, x, "ddim", steps=8, grid="chain", t_to=0.0).nfe == 8
    assert sdediff.solve(model, x, "ddim", steps=8, grid="time", t_from=31.5 / N, t_to=1.5 / N).nfe > 8
    alone = sdediff.load(tmp_path, conditioning="instants").double()
    with pytest.raises(ValueError, match=r"knows the 32 instants of its chain alone, not t = 0\.3"):
        alone.epsilon(x, 0.3)


LABELS = {"class_labels": torch.tensor([2, 0, 1])}


@torch.no_grad()
def test_classes_are_a_condition(tmp_path: Path) -> None:
    """At every label diffusers' own answer, item by item and in any order; through a saved run too."""
    network = unet(num_class_embeds=3)
    model = sdediff.load(saved(tmp_path / "theirs", network, diffusers.DDPMScheduler(**BETAS)))
    sdediff.save(model, tmp_path / "run")
    x = states().float()
    truth = network(x, 15, **LABELS).sample
    for each in (model, sdediff.load(tmp_path / "run")):
        for condition in (LABELS, LABELS["class_labels"]):
            torch.testing.assert_close(each.given(condition).epsilon(x, 16 / N), truth, rtol=1e-5, atol=1e-6)
    order = torch.tensor([1, 2, 0])
    turned = {"class_labels": LABELS["class_labels"][order]}
    torch.testing.assert_close(model.given(turned).epsilon(x, 16 / N), network(x, 15, **turned).sample)
    assert not torch.allclose(model.given(turned).epsilon(x, 16 / N), truth)  # labels matter
    whole = sdediff.sample(model, (3, *SHAPE), steps=4, seed=0, condition=LABELS)
    parts = sdediff.sample(model, (3, *SHAPE), steps=4, seed=0, condition=LABELS, batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    export(model, tmp_path / "out")
    again = sdediff.load(tmp_path / "out").given(LABELS)
    assert torch.equal(again.epsilon(x, 0.3), model.given(LABELS).epsilon(x, 0.3))


WITHOUT = "this model wants condition={'class_labels': ...}: one label an item, 0..2"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, WITHOUT),
        ([0, 1, 3], f"{WITHOUT}; came 0 to 3"),
        ([0, -1, 2], f"{WITHOUT}; came -1 to 2"),
        ([0.0, 1.0, 2.0], f"{WITHOUT}; came numbers of dtype torch.float32"),
        ([True, False, True], f"{WITHOUT}; came numbers of dtype torch.bool"),
    ],
)
def test_wrong_classes_are_refused_by_every_verb(labels: list[Any] | None, words: str, tmp_path: Path) -> None:
    model = sdediff.load(saved(tmp_path, unet(num_class_embeds=3), diffusers.DDPMScheduler(**BETAS)))
    condition = None if labels is None else {"class_labels": torch.tensor(labels)}
    x = torch.zeros(3, *SHAPE)
    for verb in (
        lambda: sdediff.sample(model, (3, *SHAPE), steps=2, condition=condition),
        lambda: sdediff.encode(model, x, steps=2, condition=condition),
        lambda: sdediff.log_likelihood(model, x, steps=2, condition=condition),
        lambda: sdediff.elbo(model, x.to(torch.uint8), draws=2, condition=condition),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            verb()


def test_a_network_without_classes_takes_none(tmp_path: Path) -> None:
    model = sdediff.load(saved(tmp_path, unet(), diffusers.DDPMScheduler(**BETAS)))
    with pytest.raises(ValueError, match="trained without classes: it takes no class_labels"):
        model.given(LABELS).epsilon(states().float(), 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@torch.no_grad()
def test_every_timestep_reaches_the_network_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """In any precision of the weights, diffusers' own answer at timesteps that bf16 (8 bits) and fp16 (11) round."""
    network = unet().to(dtype)
    model = sdediff.load(saved(tmp_path, unet(), diffusers.DDPMScheduler(1000))).to(dtype)
    x = states().to(dtype)
    for k in (0, 257, 750, 997, 998, 999):
        truth = network(x, torch.full((len(x),), k)).sample
        assert torch.equal(model.network(x, torch.full((len(x),), float(k))), truth), k
        assert torch.equal(model.epsilon(x, (k + 1) / 1000), truth), k
        if dtype == torch.bfloat16 and k == 257:
            assert not torch.equal(network(x, torch.full((len(x),), 258)).sample, truth)  # the next one is told apart


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_by_hand(prediction: str, tmp_path: Path) -> None:
    """Betas that end in 1 are the chain of the folder: alpha-bar to float32's rounding, and 1e-14 at the end."""
    scheduler = diffusers.DDPMScheduler(1000, rescale_betas_zero_snr=True, prediction_type=prediction)
    assert float(scheduler.betas[-1]) == 1.0
    chain = sdediff.load(saved(tmp_path, unet(), scheduler)).sde
    by_hand = DDPM(scheduler.betas)
    instants = chain.instants[1:]  # type: ignore[index]
    torch.testing.assert_close(by_hand.log_alpha(instants), chain.log_alpha(instants), rtol=1e-5, atol=1e-6)
    for sde in (by_hand, chain):
        assert float(2.0 * sde.log_alpha(1.0)) == pytest.approx(math.log(1e-14), abs=1e-6)
    # A beta next to 1 is rounded to half an ulp, 6e-17: 3e-3 of the 2e-14 that are left of 1/2, 6e-4 of 1e-13.
    assert float(2.0 * DDPM([0.5, 1.0]).log_alpha(1.0)) == pytest.approx(math.log(1e-14), abs=4e-3)
    dark = DDPM([1.0 - 1e-13, 1.0])  # a hundredth of what is left, where that is less
    assert float(2.0 * dark.log_alpha(1.0)) == pytest.approx(math.log(1e-15), abs=1e-3)


@pytest.mark.parametrize("kind", ["DDIM", "EulerDiscrete", "UniPCMultistep", "PNDM", "DEISMultistep"])
def test_zero_terminal_snr_of_other_schedulers(kind: str, tmp_path: Path) -> None:
    """Whether they write 0 or 2^-24 at the end, or know nothing of it but carry the setting on: the trained chain."""
    trained = diffusers.DDPMScheduler(1000, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    folder = saved(tmp_path, unet(), getattr(diffusers, f"{kind}Scheduler").from_config(trained.config))
    config = folder / "scheduler" / "scheduler_config.json"
    assert json.loads(config.read_text())["rescale_betas_zero_snr"] is True
    found, wanted = sdediff.load(folder).sde, DDPM(trained.betas)
    instants = wanted.instants[1:-1]
    torch.testing.assert_close(found.log_alpha(instants), wanted.log_alpha(instants), rtol=1e-5, atol=1e-5)
    assert float(2.0 * found.log_alpha(1.0)) == pytest.approx(math.log(1e-14), abs=1e-6)
    text = config.read_text().replace('"v_prediction"', '"epsilon"')
    config.write_text(text)
    with pytest.raises(ValueError, match="no signal at the last timestep"):
        sdediff.load(folder)
    config.write_text(text.replace('"rescale_betas_zero_snr": true', '"rescale_betas_zero_snr": false'))
    assert float(sdediff.load(folder).sde.alpha(1.0)) > 1e-3  # the control


def test_attention_by_its_old_names(tmp_path: Path) -> None:
    """Weights of before diffusers 0.17, as those of the first public models are."""
    network = unet(down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",), add_attention=True)
    folder = saved(tmp_path, network, diffusers.DDPMScheduler(**BETAS))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in network.state_dict().items():
        for now, before in old.items():
            name = name.replace(f".{now}.", f".{before}.")
        weights[name] = value.contiguous()
    assert len(set(weights) & set(network.state_dict())) < len(weights)
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    found = sdediff.load(folder).network.inner.state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


@torch.no_grad()
def test_series_are_read(tmp_path: Path) -> None:
    """A network on series, one dimension beside the channels."""
    network = diffusers.UNet1DModel(
        sample_size=16, in_channels=2, out_channels=2, extra_in_channels=0, block_out_channels=(8, 8),
        time_embedding_type="positional", use_timestep_embedding=True, act_fn="mish", norm_num_groups=4,
        down_block_types=("DownResnetBlock1D",) * 2, up_block_types=("UpResnetBlock1D",) * 2,
        mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock",
    ).eval()  # fmt: skip
    model = sdediff.load(saved(tmp_path, network, diffusers.DDPMScheduler(**BETAS)))
    assert model.data is not None
    assert model.data.shape == (2, 16)
    x = NoiseSource(5, (3, 2, 16)).normal(NoiseSource.START).float()
    torch.testing.assert_close(model.epsilon(x, 8 / N), network(x, 7).sample, rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "zero signal": ({}, "DDPM", {"rescale_betas_zero_snr": True}, "needs v_prediction or sample"),
    "no chain": ({}, "FlowMatchEulerDiscrete", {}, "others have no table of betas"),
    "channels": ({"out_channels": 3}, "DDPM", {}, "returns 3 channels for 1"),
    "sigmas": ({"time_embedding_type": "fourier"}, "DDPM", {}, "noise levels"),
    "no size": ({"sample_size": None}, "DDPM", {}, "give data="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_here_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    settings, kind, options, words = REFUSED[case]
    saved(tmp_path, unet(**settings), getattr(diffusers, f"{kind}Scheduler")(**options))
    with pytest.raises(ValueError, match=words) as caught:
        sdediff.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_data_may_be_said(tmp_path: Path) -> None:
    folder = saved(tmp_path, unet(sample_size=None), diffusers.DDPMScheduler(**BETAS))
    info = DataInfo((1, 4, 4), 17, 0.0, 1.0, "digits")
    assert sdediff.load(folder, data=info).data == info


def test_pickles_and_missing_parts(tmp_path: Path) -> None:
    folder = saved(tmp_path, unet(), diffusers.DDPMScheduler(**BETAS))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="damaged") as caught:
        sdediff.load(folder)
    assert "\n" not in str(caught.value)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="is a pickle"):
        sdediff.load(folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        sdediff.load(folder)
    unet(layers_per_block=2).save_pretrained(tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / weights.name).read_bytes())
    with pytest.raises(ValueError, match=r"do not fit|damaged"):
        sdediff.load(folder)
    weights.write_bytes(whole)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no scheduler"):
        sdediff.load(folder)
    with pytest.raises(FileNotFoundError, match=r"a name of the Hugging Face hub is fetched by --download"):
        sdediff.load("google/ddpm-cifar10-32")  # a name is not looked for anywhere else


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model = sdediff.load(saved(tmp_path / "in", unet(), diffusers.DDPMScheduler(**BETAS)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="force"):
        export(model, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"holds more than a model of diffusers \(precious\)"):
        export(model, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "precious").read_text() == "x"
    (tmp_path / "out" / "precious").rename(tmp_path / "out" / "model_index.json")
    export(model, tmp_path / "out", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model_index.json", "scheduler", "unet"]
    assert sdediff.load(tmp_path / "out").sde == model.sde


def test_what_diffusers_cannot_say(tmp_path: Path) -> None:
    network = DiffusersNetwork.of(unet())
    for model, words in (
        (ScoreModel(lambda x, t: x, VPSDE()), "only models whose network is a class of diffusers"),
        (ScoreModel(network, VPSDE()), "only a DDPM asked by label can be exported, not VPSDE asked by time"),
        (ScoreModel(network, DDPM.linear(9), conditioning=ByLabel(offset=1.0)), "from 0: only .* offset=1"),
        (ScoreModel(network, DDPM.linear(9), "flow", conditioning="label"), "knows the predictions epsilon, sample"),
    ):
        with pytest.raises(ValueError, match=words):
            export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, unet(), diffusers.DDPMScheduler(**BETAS))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"models of diffusers need diffusers: pip install 'sdediff\[diffusers\]'"):
        sdediff.load(folder)


def test_importing_the_library_does_not_import_diffusers() -> None:
    """Its one import stands in a function."""
    for path in Path(interop.__file__).parent.glob("*.py"):
        tops = [node for node in parsed(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not {name for node in tops for name in imports(node) if name.split(".")[0] == "diffusers"}


def test_the_command_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "theirs", unet(), diffusers.DDPMScheduler(**BETAS))
    for arguments in (
        ["sample", "--run", str(folder), "-n", "2", "--steps", "3", "--device", "cpu", "--out", str(tmp_path / "a")],
        ["info", "--run", str(folder)],
        ["export", str(folder), str(tmp_path / "ours"), "--to", "diffusers"],
        ["tune", "--run", str(folder), "--help"],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, (arguments, result.output)
    assert sdediff.load(tmp_path / "ours").sde == sdediff.load(folder).sde
    assert CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "ours")]).exit_code == 2


BOUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "clip": ({"clip_sample": True, "clip_sample_range": 0.5}, "x0 is clipped to [-0.5, 0.5]"),
    "threshold": (
        {"clip_sample": False, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
        "x0 is thresholded at its 0.9 quantile, up to 1.5",
    ),
    "neither": ({"clip_sample": False}, ""),
}


def sampled(folder: Path, out: Path, *arguments: str) -> tuple[Tensor, str]:
    """Samples of the command line, three by DDIM in eight steps, and its remarks."""
    common = ["sample", "--run", str(folder), "-n", "3", "--seed", "3", "--device", "cpu", "--out", str(out), "--force"]
    result = CliRunner().invoke(main, [*common, *arguments])
    assert result.exit_code == 0, result.output
    with np.load(out.with_suffix(".npz")) as arrays:
        return torch.from_numpy(arrays["samples"]), result.stderr


@pytest.mark.parametrize("kind", BOUNDS)
def test_the_command_line_clips_as_the_scheduler_does(kind: str, tmp_path: Path) -> None:
    """Against their DDIM step by step; without it by a flag, and never in densities, nor in the loaded model."""
    settings, words = BOUNDS[kind]
    scheduler = diffusers.DDIMScheduler(**BETAS, **settings, timestep_spacing="trailing")
    plain = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    network = unet()
    folder = saved(tmp_path / "theirs", network, scheduler)
    model = sdediff.load(folder)
    x = model.sde.prior_sample((3, *SHAPE), seed=3)
    truth, free = (their_samples(network, each, x, 8, use_clipped_model_output=True) for each in (scheduler, plain))
    ddim = ("--solver", "ddim", "--steps", "8", "--grid", "chain")
    ours, remarks = sampled(folder, tmp_path / "a", *ddim)
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)
    assert remarks.count(f"scheduler: {words} at every step; --no-clip leaves it out\n") == bool(words)
    without, remarks = sampled(folder, tmp_path / "b", *ddim, "--no-clip")
    torch.testing.assert_close(without, free, rtol=1e-3, atol=1e-3 * float(free.abs().max()))
    assert "scheduler:" not in remarks
    if words:
        assert float((truth - free).abs().max()) > 0.1  # the control: the bounds are met
        assert float(ours.abs().max()) <= 1.0
    bounds = interop.sample_bounds(model)
    by_hand = sdediff.sample(bounds.of(model), (3, *SHAPE), "ddim", steps=8, grid="chain", seed=3)
    torch.testing.assert_close(by_hand, ours, rtol=1e-5, atol=1e-5)
    by_default = sdediff.sample(model, (3, *SHAPE), "ddim", steps=8, grid="chain", seed=3)
    torch.testing.assert_close(by_default, without, rtol=1e-4, atol=1e-4 * float(free.abs().max()))


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@torch.no_grad()
def test_the_clean_half_is_that_of_their_step(prediction: str, kind: str, tmp_path: Path) -> None:
    """``pred_original_sample`` of ``DDIMScheduler.step`` at every timestep, to float32's rounding of its tables."""
    scheduler = diffusers.DDIMScheduler(**BETAS, **BOUNDS[kind][0], prediction_type=prediction)
    network = unet()
    model = sdediff.load(saved(tmp_path, network, scheduler)).double()
    bounded, x = interop.sample_bounds(model).of(model), states()
    scheduler.set_timesteps(N)
    for k in range(N):
        theirs = scheduler.step(network.double()(x, k).sample, k, x).pred_original_sample
        torch.testing.assert_close(bounded.denoise(x, (k + 1) / N), theirs, rtol=2e-5, atol=2e-5)


def test_densities_are_of_the_plain_network(tmp_path: Path) -> None:
    folder = saved(tmp_path / "theirs", unet(), diffusers.DDIMScheduler(**BETAS, clip_sample_range=0.5))
    options = ("--steps", "3", "--log-prob")
    ours, remarks = sampled(folder, tmp_path / "a", *options)
    again, silent = sampled(folder, tmp_path / "b", *options, "--no-clip")
    assert torch.equal(ours, again)
    assert "x0 is clipped to [-0.5, 0.5], but not here: densities are those of the network's own flow" in remarks
    assert "scheduler:" not in silent


def test_models_saved_here_keep_their_scheduler(tmp_path: Path) -> None:
    model = sdediff.load(saved(tmp_path / "theirs", unet(), diffusers.DDIMScheduler(**BETAS, clip_sample_range=0.5)))
    sdediff.save(model, tmp_path / "run")
    ours, remarks = sampled(tmp_path / "run", tmp_path / "a", "--solver", "ddim", "--steps", "4")
    assert float(ours.abs().max()) <= 0.5
    assert "x0 is clipped to [-0.5, 0.5] at every step" in remarks


def test_a_solver_chosen_with_the_scheduler_s_bounds_is_not_that_without(tmp_path: Path) -> None:
    folder = saved(tmp_path / "theirs", unet(), diffusers.DDIMScheduler(**BETAS, clip_sample_range=0.1))
    kept, drawn = list[list[str]](), list[Tensor]()
    for flags in ((), ("--no-clip",), ()):
        x, remarks = sampled(folder, tmp_path / "a", "--solver", "auto", "--steps", "2", *flags)
        assert (f"(from {folder}" in remarks) == (len(drawn) == 2)
        kept.append([each["setting"] for each in json.loads((folder / "auto.json").read_text())["choices"]])
        drawn.append(x)
    bounds = "x0 is clipped to [-0.1, 0.1]"
    assert kept == [[bounds], ["", bounds], ["", bounds]]
    torch.testing.assert_close(drawn[0], drawn[2], rtol=1e-4, atol=1e-4)
    assert float((drawn[0] - drawn[1]).abs().max()) > 0.1  # the control: the bounds are met


def test_a_flat_folder_is_the_nested_one_on_the_command_line(tmp_path: Path) -> None:
    """As of google/ddpm-cifar10-32: the network's config.json is not that of a run."""
    nested = saved(tmp_path / "nested", unet(), diffusers.DDPMScheduler(**BETAS))
    flat = tmp_path / "flat"
    unet().save_pretrained(flat)
    diffusers.DDPMScheduler(**BETAS).save_pretrained(flat)
    np.save(tmp_path / "x.npy", np.arange(192, dtype=np.uint8).reshape(3, *SHAPE))
    found = []
    for folder in (nested, flat):
        assert CliRunner().invoke(main, ["info", "--run", str(folder)]).exit_code == 0
        result = CliRunner().invoke(
            main, ["likelihood", str(tmp_path / "x.npy"), "--run", str(folder), "--elbo", "--draws", "4", "--json"]
        )
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout)["mean"])
    assert found[0] == found[1]


def test_classes_are_told_by_label_and_labels(tmp_path: Path) -> None:
    """As the network's only argument is named, ``class_labels``; none or one beyond them is refused."""
    folder = str(saved(tmp_path / "m", unet(num_class_embeds=3), diffusers.DDPMScheduler(**BETAS)))
    images = np.arange(192, dtype=np.uint8).reshape(3, *SHAPE)
    np.savez(tmp_path / "x.npz", images=images, labels=np.full(3, 2))
    common = ["likelihood", str(tmp_path / "x.npz"), "--run", folder, "--elbo", "--draws", "4", "--json"]
    ways = (["--condition", "class_labels=2"], ["--label", "2"], ["--labels"], ["--condition", "class_labels=0"])
    means = []
    for way in ways:
        result = CliRunner().invoke(main, [*common, *way])
        assert result.exit_code == 0, result.output
        means.append(json.loads(result.stdout)["mean"])
    assert means[0] == means[1] == means[2] != means[3]
    for way, words in (([], "has to be told a class, 0 to 2: --label"), (["--label", "3"], "no class '3'")):
        result = CliRunner().invoke(main, [*common, *way])
        assert result.exit_code == 2
        assert words in result.output
