"""MNIST in the same processor time: ours beside a plain loop of diffusers, by bits/dim and before a classifier.

    python -m experiments.training.mnist MNIST.npz --runs runs/mnist

Needs diffusers. Ours is ``mnist.toml``. The peer is the loop of diffusers' tutorial (epsilon, linear chain of 1,000,
cosine rate with 500 steps of warm-up, moving average), with a U-Net of about the size and the batch of ours and ten
times its rate, 1e-3, at which it learns faster; it trains for the processor time of one thread that ours took. Both
are scored by the same code: bits/dim of held-out images with uniform dequantisation, and 1,000 samples in 50 steps of
``"ode"`` before a small convolutional classifier trained on the real digits. Printed of it are the Fréchet distance to
the held-out images in its 64 features, with the interval of half samples, and the share that it names with a
probability above 0.99; the first line is of as many real training images.

Measured so far on 200 samples in 20 steps (Frechet distance, interval, share named with certainty; 200 real images have
24 and 86 %): ours after its 15 minutes of one thread 88 (63 to 91) and 22 %, ours after nine of them 108 (82 to 107)
and 18 %; the peer after nine, all that it was given, 94 (66 to 100) and 13 %. The whole command and bits/dim are not
measured yet. Cost: 40 minutes of one core.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import sdediff
from sdediff.config import Config
from sdediff.data import Dataset, load_dataset, to_levels

CONFIG = Path(__file__).with_suffix(".toml")
BATCH, RATE, WARMUP, DECAY = 32, 1e-3, 500, 0.995
SURE = 0.99


def ours(data: Dataset, path: str, folder: Path) -> float:
    """Train ours and return the processor time."""
    start = time.process_time()
    sdediff.train(data, config=Config.load(CONFIG).updated({"data.name": path}), run=folder, device="cpu")
    return time.process_time() - start


def theirs(data: Dataset, seconds: float, folder: Path) -> None:
    """Train the peer for a processor time, and save it as diffusers does."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    blocks = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    network = UNet2DModel(
        28, 1, 1, block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8, attention_head_dim=16,
        down_block_types=blocks[0], up_block_types=blocks[1],
    )  # fmt: skip
    print(f"peer: {sum(weight.numel() for weight in network.parameters()):,} weights", flush=True)
    scheduler, ema = DDPMScheduler(1000), EMAModel(network.parameters(), decay=DECAY)
    optimizer, images = torch.optim.AdamW(network.parameters(), lr=RATE), data.train
    start, step, rates = time.process_time(), 0, None
    while (spent := time.process_time() - start) < seconds:
        if step == 20:  # how many steps there will be is known by now
            steps = int(seconds / spent * step)
            rates = get_cosine_schedule_with_warmup(optimizer, min(WARMUP, steps // 5), steps)
        clean = images[torch.randint(len(images), (BATCH,))].float() / 127.5 - 1.0
        noise, times = torch.randn_like(clean), torch.randint(0, 1000, (BATCH,))
        loss = nn.functional.mse_loss(
            network(scheduler.add_noise(clean, noise, times), times, return_dict=False)[0], noise
        )
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if rates is not None:
            rates.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        step += 1
        if step % 100 == 0:
            print(f"peer: step {step}, loss {loss.item():.4f}, {spent:.0f} s", flush=True)
    ema.copy_to(network.parameters())
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")


class Classifier(nn.Module):
    """Two convolutions and 64 features, for digits."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
        ]
        self.body = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1568, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """Return 64 features of levels ``(B, 1, 28, 28)``."""
        found: Tensor = self.body(x.float() / 255.0)
        return found

    def sure(self, x: Tensor) -> float:
        """Return the share of images that are named with a probability above ``SURE``."""
        with torch.no_grad():
            probable = self.head(self.features(x)).softmax(dim=1).amax(dim=1)
        return float((probable > SURE).double().mean())

    @classmethod
    def trained(cls, data: Dataset, epochs: int = 2) -> Classifier:
        """Return one trained on the labels."""
        torch.manual_seed(0)
        classifier, labels = cls(), torch.as_tensor(data.train_labels)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(data.train)).split(128):
                loss = nn.functional.cross_entropy(
                    classifier.head(classifier.features(data.train[rows])), labels[rows].long()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return classifier.eval()


@click.command()
@click.argument("path", type=click.Path(exists=True))
@click.option(
    "--runs", type=click.Path(path_type=Path), required=True, help="Folder of the runs; those there are kept."
)
@click.option("--images", default=64, show_default=True, help="Held-out images of the bits/dim.")
@click.option("--samples", default=1000, show_default=True)
def main(path: str, runs: Path, images: int, samples: int) -> None:
    torch.set_num_threads(1)
    data, (mine, other, clock) = load_dataset(path), (runs / name for name in ("ours", "peer", "seconds"))
    if not clock.exists():
        seconds = ours(data, path, mine)
        clock.write_text(str(seconds))
    if not (other / "scheduler").exists():
        theirs(data, float(clock.read_text()), other)
    classifier = Classifier.trained(data)
    named = classifier.head(classifier.features(data.held_out)).argmax(dim=1) == data.held_out_labels
    print(f"classifier: {named.double().mean():.2%} of held-out images named as labelled")

    def show(name: str, x: Tensor, bits: str = "") -> None:
        features = {"features": classifier.features, "measures": ("frechet",)}
        with torch.no_grad():
            found = sdediff.evaluate(x, data.held_out[:samples], **features).figures["frechet"]
        print(
            f"{name:6s} {bits} Frechet distance {found.value:.2f} ({found.low:.2f} to {found.high:.2f}), "
            f"{classifier.sure(x):.1%} named with certainty",
            flush=True,
        )

    show("real", data.train[:samples])
    for name, folder in (("ours", mine), ("peer", other)):
        model = sdediff.load(folder, data=data.info)
        bits = sdediff.bits_per_dim(model, data.held_out[:images], seed=0)
        x = sdediff.sample(model, (samples, *data.info.shape), solver="ode", steps=50, seed=0)
        show(name, to_levels(x, data.info), f"{bits.mean:.3f} +- {bits.mean_standard_error:.3f} bits/dim,")


if __name__ == "__main__":
    main()
