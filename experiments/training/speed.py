"""A step of training beside its peers', with the same network, batch and number type; and what it spends elsewhere.

    python -m experiments.training.speed --threads 1

The loops train one U-Net, that of ``denoising-diffusion-pytorch`` (two more extras: ``denoising-diffusion-pytorch
ema-pytorch``), on random images that lie in memory already: ours with ``L_simple`` of a chain of 1,000 steps, its own
moving average and clipping; the lines of that package's ``Trainer.train``; and those of diffusers' script for
unconditional training. ``ours, compiled`` is ours with ``compile=True``, ``channels_last=True``. The loops take steps
in turn, and the median of each is printed; on one thread it is processor time.

The last lines take our step apart: the forward of the network, the backward pass, the optimiser, and all the rest,
which is drawing the batch, noising it, the loss, clipping and the moving average.

Expected on one thread, batches of 16: 0.96 to 1.04 times as fast as the faster peer, 1.13 times compiled; the rest is
2 % of a step. The network is the same, so that a loop alone can gain no more than its rest. Cost: two minutes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import click
import torch
from torch import Tensor, nn

from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.training.trainer import Trainer
from sdediff.types import DataInfo

Step = Callable[[int], object]
SHAPE, RATE, DECAY = (1, 28, 28), 1e-4, 0.995


def peers() -> ModuleType:
    """Return ``denoising-diffusion-pytorch``; its module asks for torchvision, of which the loop takes nothing."""
    absent = find_spec("torchvision") is None
    if absent:
        stand_in: Any = ModuleType("torchvision")
        stand_in.transforms = stand_in.utils = None
        sys.modules["torchvision"] = stand_in
    import denoising_diffusion_pytorch

    if absent:
        del sys.modules["torchvision"]
    return denoising_diffusion_pytorch


def unet() -> nn.Module:
    """Return the U-Net of every loop, with the same weights."""
    torch.manual_seed(0)
    return peers().Unet(32, dim_mults=(1, 2, 4), channels=SHAPE[0])


def trainer(batch: int, device: str, network: nn.Module, **settings: Any) -> Trainer:
    """Return ours."""
    changes = {"training.batch_size": batch, "training.learning_rate": RATE, "training.ema": DECAY}
    changes |= {"sde.name": "ddpm", "model.prediction": "epsilon", "model.conditioning": "label"}
    changes |= {"training.time_law": "instants", "training.weighting": "simple"}
    config = Config().updated({**changes, **{f"training.{name}": value for name, value in settings.items()}})
    images = torch.randint(0, 256, (4096, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset(images[512:], images[:512], DataInfo(SHAPE, 256, name="random"))
    return Trainer(config.with_network(network), data, device, network=network)


def theirs(batch: int, device: str, network: nn.Module) -> Step:
    """Return the lines of ``denoising_diffusion_pytorch.Trainer.train``."""
    from accelerate import Accelerator

    package, accelerator = peers(), Accelerator(cpu=device == "cpu")
    diffusion = package.GaussianDiffusion(network, image_size=SHAPE[-1], objective="pred_noise").to(device)
    ema = package.denoising_diffusion_pytorch.EMA(diffusion, beta=DECAY, update_every=10).to(device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=RATE, betas=(0.9, 0.99))
    model, optimizer = accelerator.prepare(diffusion, optimizer)
    images = torch.rand(4096, *SHAPE, device=device)

    def step(_: int) -> float:
        model.train()
        data = images[torch.randint(len(images), (batch,), device=device)]
        with accelerator.autocast():
            loss = model(data)
        total: float = loss.item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        return total

    return step


def plain(batch: int, device: str, network: nn.Module) -> Step:
    """Return the lines of diffusers' ``train_unconditional_image_generation``."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    scheduler, network = DDPMScheduler(1000), network.to(device)
    ema = EMAModel(network.parameters(), decay=DECAY)
    ema.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.95, 0.999), weight_decay=1e-6)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 500))
    images = 2.0 * torch.rand(4096, *SHAPE, device=device) - 1.0

    def step(_: int) -> float:
        clean = images[torch.randint(len(images), (batch,), device=device)]
        noise = torch.randn_like(clean)
        times = torch.randint(0, 1000, (batch,), device=device).long()
        loss = nn.functional.mse_loss(network(scheduler.add_noise(clean, noise, times), times).float(), noise.float())
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        return loss.item()

    return step


class Parts:
    """Seconds of forward, backward and optimiser of a trainer, whose calls are replaced by timed ones."""

    def __init__(self, trainer: Trainer, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.clock = clock
        network, workers, optimizer = trainer.model.network, trainer.workers, trainer.optimizer
        network.forward = self.timed("forward", network.forward)
        workers.backward = self.timed("backward", workers.backward)
        optimizer.step = self.timed("optimiser", optimizer.step)

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call whose seconds are added up."""

        def run(*inputs: Any, **named: Any) -> Any:
            start = self.clock()
            result = work(*inputs, **named)
            self.seconds[name] += self.clock() - start
            return result

        return run


@click.command()
@click.option("--batch", default=32, show_default=True)
@click.option("--steps", default=15, show_default=True, help="Timed steps of each loop.")
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--compiled/--eager", default=True, show_default=True, help="Whether ours is compiled, too.")
def main(batch: int, steps: int, threads: int, device: str, compiled: bool) -> None:
    torch.set_num_threads(threads)
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    apart = trainer(batch, device, unet())
    loops: dict[str, Step] = {
        "ours": trainer(batch, device, unet()).step,
        "denoising-diffusion-pytorch": theirs(batch, device, unet()),
        "diffusers": plain(batch, device, unet()),
    }
    if compiled:
        loops["ours, compiled"] = trainer(batch, device, unet(), compile=True, channels_last=True).step
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(steps + 2):  # the first two warm up
        for name, step in loops.items():
            start = clock()
            loss = step(number)
            if isinstance(loss, Tensor):
                loss.item()  # which waits for the device
            seconds[name].append(clock() - start)
    medians = {name: statistics.median(taken[2:]) for name, taken in seconds.items()}
    faster = min(medians["denoising-diffusion-pytorch"], medians["diffusers"])
    for name, median in medians.items():
        print(f"{name:28s} {1e3 * median:9.2f} ms a step, {faster / median:.2f} x the faster peer")
    if device != "cpu":
        return  # whose kernels run on after the calls that are timed
    for number in range(2):
        apart.step(number)
    parts, start = Parts(apart, clock), clock()
    for number in range(steps):
        apart.step(2 + number)
    whole = clock() - start
    for name, spent in {**parts.seconds, "the rest": whole - sum(parts.seconds.values())}.items():
        print(f"{name:28s} {1e3 * spent / steps:9.2f} ms a step, {spent / whole:.1%}")


if __name__ == "__main__":
    main()
