"""Files damaged at random, by seed: whatever is in them, reading ends in an answer or in bad input.

``python tests/damage.py 10000`` reads so many damaged checkpoints, configurations, tuned solvers and folders of
diffusers, and prints what came of them and the peak of memory.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdediff import DDPM, DataInfo, ScoreModel, load, save, tuning
from sdediff.config import Config, build
from sdediff.evaluation.distances import Errors
from sdediff.gaussian import Moments
from sdediff.samplers.candidates import METHODS
from sdediff.samplers.tuned import AdamsMethod, StepWeights, Tuned
from sdediff.training.state import load_state, save_state
from sdediff.tuning.tuner import Tuning

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, -3, 2, 3, 17, 20_000, 10**9, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), float("-inf"), "", "name", "3", "nan", "../../etc", "\x00", "\ud800", "x" * 10_000, [],
    {}, [[]], [3], [0], [-1], ["a"], [1, 2, 3], [1e9], [10**12] * 4, {"name": "vp"}, {"name": 3}, {"name": "x", "y": 1},
    {"a": {"b": {}}},
]  # fmt: skip
"""What may stand where something else is expected."""


class Target(NamedTuple):
    """Something that is read.

    Attributes:
        files: that it is read from.
        read: reads it, and uses what it got.
    """

    files: tuple[Path, ...]
    read: Callable[[], object]


def own_run(folder: Path, shape: tuple[int, ...]) -> Target:
    """A run of the library, with the exact layer and moments."""
    config, info = Config().updated({"network.width": "8"}), DataInfo(shape, 5, -0.5, 0.5, "some data")
    data = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0))
    save(build(config, info, Moments.fit(data)), folder)

    def read() -> object:
        return used(load(folder))

    return Target((folder / "model.json", folder / "model.safetensors"), read)


def configurations(folder: Path) -> Target:
    """A configuration as JSON and as TOML."""
    folder.mkdir()
    changes = {
        "sde.name": "vp",
        "network.name": "unet",
        "network.multipliers": "[1, 2]",
        "training.weighting": "min-snr",
    }
    config = Config().updated({**changes, "training.weighting.gamma": "4"})
    (folder / "config.json").write_text(config.to_json())
    (folder / "config.toml").write_text(
        '[data]\nname = "moons"\n[sde]\nname = "ddpm"\nsteps = 12\n[network]\nname = "unet"\nmultipliers = [1, 2]\n'
        '[model]\nprediction = "epsilon"\n[training]\nsteps = 7\nlearning_rate = 1e-3\n'
        'time_law = {name = "logsnr-normal", mean = 1.0}\n'
    )

    def read() -> object:
        return Config.load(folder / "config.json").to_json() + Config.load(folder / "config.toml").to_json()

    return Target((folder / "config.json", folder / "config.toml"), read)


def state(folder: Path) -> Target:
    """What training goes on from."""
    folder.mkdir()
    model = build(Config().updated({"network.width": "8"}), DataInfo((2,)))
    average = copy.deepcopy(model)

    def optimised(network: ScoreModel) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(network.parameters())
        network.epsilon(torch.zeros(2, 2), 0.5).sum().backward()
        optimizer.step()
        return optimizer

    def read() -> object:
        network, mean = copy.deepcopy(model), copy.deepcopy(average)
        optimizer = torch.optim.AdamW(network.parameters())
        step = load_state(folder / "state.safetensors", network, mean, optimizer)
        network.epsilon(torch.zeros(2, 2), 0.5).sum().backward()
        optimizer.step()
        return step

    save_state(folder, 3, model, average, optimised(model))
    return Target((folder / "state.safetensors",), read)


def tuned(folder: Path) -> Target:
    """A tuned solver."""
    model = ScoreModel(build(Config(), DataInfo((2,))).network, DDPM.linear(10), data=DataInfo((2,)))
    rows = (StepWeights((1.0,), (0.0,)), StepWeights((1.0, 0.5), (0.0, 0.1)))
    solver = Tuned((-2.0, 0.0, 1.5), rows, rows[-1], AdamsMethod(1, correct=True), (-2.0, 0.1))
    folder.mkdir()
    tuning.save(folder, model, [Tuning(solver, Errors(1.0, 0.5), Errors(0.5, 0.2), 0.0)])
    return Target((folder / "tuned.json",), lambda: tuning.load(folder, model).rows)


def chosen(folder: Path) -> Target:
    """A solver that was chosen."""
    model = ScoreModel(build(Config(), DataInfo((2,))).network, DDPM.linear(10), data=DataInfo((2,)))
    choice = tuning.Choice("ode on some grid", tuning.Chosen(METHODS["ode"], (1.0, 0.5, 0.2, 0.0)), -1.0)
    folder.mkdir()
    tuning.save_choice(folder, model, choice)
    return Target((folder / "auto.json",), lambda: tuning.load_choice(folder, model, 3, 1.0, 0.0))


def diffusers_folder(folder: Path) -> Target:
    """A network of diffusers and its scheduler."""
    from diffusers import DDPMScheduler, UNet2DModel

    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("AttnDownBlock2D",), up_block_types=("UpBlock2D",), attention_head_dim=4, num_class_embeds=3,
    )  # fmt: skip
    network.save_pretrained(folder / "unet")
    DDPMScheduler(12, trained_betas=[0.1] * 12).save_pretrained(folder / "scheduler")

    def read() -> object:
        model = load(folder)
        return used(model.given({"class_labels": torch.tensor([1])} if model.network.conditional else None))

    unet = folder / "unet"
    files = (unet / "config.json", unet / "diffusion_pytorch_model.safetensors")
    return Target((*files, folder / "scheduler" / "scheduler_config.json"), read)


def targets(folder: Path, *, diffusers: bool = True) -> list[Target]:
    """One of each kind."""
    found = [own_run(folder / "points", (3,)), own_run(folder / "images", (1, 4, 4))]
    found += [
        configurations(folder / "config"),
        tuned(folder / "tuned"),
        chosen(folder / "chosen"),
        state(folder / "state"),
    ]
    return [*found, diffusers_folder(folder / "diffusers")] if diffusers else found


@torch.no_grad()
def used(model: ScoreModel) -> object:
    """Ask a model that was read."""
    if model.data is None or torch.Size(model.data.shape).numel() > 10_000:
        return None
    return model.epsilon(torch.zeros(1, *model.data.shape, dtype=model.state_dtype), 0.5)


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in inner for found in nodes(value, (*path, key)))]


def changed(tree: Any, rng: random.Random) -> str:
    """A JSON value with something wrong in it, as text."""
    tree = json.loads(json.dumps(tree))
    *path, last = rng.choice(nodes(tree)[1:])
    inside = tree
    for key in path:
        inside = inside[key]
    kind = rng.randrange(6)
    if kind == 0:
        del inside[last]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(["name", "x", "self", "_class_name", "auto_map", "levels", "\u0130"])] = rng.choice(VALUES)
    elif kind == 2 and isinstance(inside, dict):
        inside[last + "_"] = inside.pop(last)
    elif kind == 3 and isinstance(inside[last], int | float):
        inside[last] = inside[last] * rng.choice([-1, 0, 0.5, 1000, 10**9])
    else:
        inside[last] = rng.choice(VALUES)
    text = json.dumps(tree)
    if kind == 4:
        text = text.replace('"name":', '"name": "vp", "name":', 1)
    if kind == 5 and rng.random() < 0.3:
        text = text.replace(": ", ": " + "[" * 100_000, 1)
    return text


def scrambled(raw: bytes, rng: random.Random) -> bytes:
    """Bytes cut, flipped, put in, taken out or replaced."""
    kind, place = rng.randrange(6), rng.randrange(max(len(raw), 1))
    if kind == 0:
        return raw[:place]
    if kind == 1:
        return raw[:place] + rng.randbytes(rng.randrange(1, 40)) + raw[place:]
    if kind == 2:
        return raw[:place] + raw[place + rng.randrange(1, 40) :]
    if kind == 3:
        return rng.choice([b"", b"null", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 10**6, b"9" * 10**5, rng.randbytes(300)])
    flipped = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        flipped[rng.randrange(len(raw)) if kind == 4 else rng.randrange(min(len(raw), 400))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def with_header(raw: bytes, rng: random.Random) -> bytes:
    """Safetensors with another header."""
    size = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + size], raw[8 + size :]
    kind = rng.randrange(5)
    if kind == 0:
        return struct.pack("<Q", rng.choice([0, 7, size - 1, size + 1, 10**8, 2**40, 2**63, 2**64 - 1])) + raw[8:]
    if kind == 1:  # numbers that are none, or other ones
        place = rng.randrange(max(len(data) - 4, 1))
        number = struct.pack("<f", rng.choice([float("nan"), float("inf"), 1e38, -1.0]))
        return raw[: 8 + size] + data[:place] + number + data[place + 4 :]
    text = changed(json.loads(header), rng).encode("utf-8", "surrogatepass")
    if kind == 2:
        text = header.replace(b'"F32"', rng.choice([b'"F16"', b'"I32"', b'"F64"', b'"U8"', b'"X"', b'"F8_E4M3"']), 1)
    return struct.pack("<Q", len(text)) + text + data


def damaged(path: Path, rng: random.Random) -> bytes:
    """The content of a file, damaged in a way that suits it."""
    raw = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        return changed(json.loads(raw), rng).encode("utf-8", "surrogatepass")
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        return with_header(raw, rng)
    return scrambled(raw, rng)


def outcome(target: Target, seed: int) -> str:
    """What reading a target came to after one of its files was damaged: "read", "refused", or a fault in words."""
    rng = random.Random(seed)
    path = rng.choice(target.files)
    whole = path.read_bytes()
    try:
        path.write_bytes(damaged(path, rng))
        target.read()
    except (ValueError, FileNotFoundError) as error:
        line = str(error)
        if isinstance(error, UnicodeError) or "\n" in line or len(line) > 2000 or not line.isprintable():
            return f"{path.name}, seed {seed}: a bad message of {len(line)} characters: {ascii(line)[:300]}"
        return "refused"
    except Exception as error:
        return f"{path.name}, seed {seed}: {type(error).__name__}: {ascii(str(error))[:300]}"
    else:
        return "read"
    finally:
        path.write_bytes(whole)


def main(count: int) -> None:
    """Damage, read, count."""
    import resource

    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder))
        before, start, counts = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), Counter[str]()
        for seed in range(count):
            result = outcome(found[seed % len(found)], seed)
            counts[result if result in ("read", "refused") else "fault"] += 1
            if result not in ("read", "refused"):
                print(result)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.monotonic() - start
    print(f"{count} damaged: {dict(counts)}, {seconds:.0f} s, peak of memory + {(peak - before) / 1024:.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
