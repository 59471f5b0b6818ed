"""Folders that name what is not theirs to name: nothing of them is run, and each is refused in one line.

The payloads only leave a file behind. Every kind is read by itself in the folder of the network, of the scheduler, or
of both.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import sdediff
from sdediff.cli import main
from sdediff.interop.network import MODEL, SCHEDULER, diffusers_class

# diffusers imports torchvision where there is one, which fails if it was built for another torch; nothing here needs it
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
diffusers = pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES: list[Any] = [
    "DiffusionPipeline", "DDPMPipeline", "AutoPipelineForText2Image", "AutoModel", "ModelMixin", "ConfigMixin",
    "SchedulerMixin", "FlaxUNet2DConditionModel", "UNet2DConditionModel", "AutoencoderKL", "LMSDiscreteScheduler.step",
    "payload", "payload.Payload", "pipeline", "os.system", "utils", "models", "__builtins__", "__class__", "..",
    "../payload", "", "UNet2DModel\x00", "unet2dmodel", "x" * 100_000, ["pipeline", "Payload"], ["UNet2DModel"],
    {"name": "UNet2DModel"}, 3, None, True,
]  # fmt: skip


def network() -> Any:
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good folder, with payloads wherever something may look for code; the working directory holds them too."""
    place = tmp_path / "model"
    network().save_pretrained(place / "unet")
    diffusers.DDPMScheduler(10).save_pretrained(place / "scheduler")
    code = (
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'sprung')!r}).touch()\n"
        "from diffusers import DiffusionPipeline, ModelMixin\n"
        "class Payload(DiffusionPipeline):\n    def __init__(self): pass\n"
    )
    index = {"_class_name": ["pipeline", "Payload"], "unet": ["payload", "Payload"], "auto_map": AUTO}
    for inner in (place, place / "unet", place / "scheduler"):
        for name in ("pipeline.py", "payload.py", "modeling.py", "__init__.py"):
            (inner / name).write_text(code)
        (inner / "model_index.json").write_text(json.dumps(index))
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    return place


AUTO = {"AutoModel": "payload.Payload", "AutoConfig": "../payload.Payload", "UNet2DModel": "pipeline--payload.Payload"}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path) -> str:
    """The line that refuses a folder, in which nothing was run, on the command line too."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sdediff.load(folder)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 2000
    result = CliRunner().invoke(main, ["info", "--run", str(folder)])
    assert result.exit_code == 2, result.output
    unsprung(folder)
    return line


def unsprung(folder: Path) -> None:
    assert not (folder.parent / "sprung").exists()
    assert not {"payload", "pipeline", "modeling"} & set(sys.modules)


def test_the_good_folder_is_read_past_its_payloads(folder: Path) -> None:
    change(folder / "unet" / "config.json", auto_map=AUTO, _name_or_path="../payload", quantization_config={"a": 1})
    change(folder / "scheduler" / "scheduler_config.json", auto_map=AUTO, _name_or_path="../payload")
    model = sdediff.load(folder)
    model.epsilon(torch.zeros(1, 1, 8, 8), 0.5)
    unsprung(folder)


def test_the_payload_would_leave_its_file(folder: Path) -> None:
    """The control: whoever imports it."""
    __import__("payload")
    del sys.modules["payload"]
    assert (folder.parent / "sprung").exists()


@pytest.mark.parametrize("name", CLASSES, ids=lambda name: str(name)[:20])
def test_classes_that_are_not_in_the_list(folder: Path, name: Any) -> None:
    whole = (folder / "unet" / "config.json").read_text()
    change(folder / "unet" / "config.json", _class_name=name)
    assert "no network that is read here" in refused(folder)
    (folder / "unet" / "config.json").write_text(whole)
    change(folder / "scheduler" / "scheduler_config.json", _class_name=name)
    assert "no scheduler that is read here" in refused(folder)
    run = folder.parent / "run"  # the same names in the library's own format
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(diffusers.DDPMScheduler(10).config)))
    change(folder / "scheduler" / "scheduler_config.json", _class_name="DDPMScheduler")
    sdediff.save(sdediff.load(folder), run)
    described = json.loads((run / "model.json").read_text())
    change(run / "model.json", network={**described["network"], "class_name": name})
    assert "damaged" in refused(run)


@pytest.mark.parametrize("name", ["AutoPipelineForText2Image", "DDPMPipeline", "DDPMScheduler"])
def test_a_class_in_the_list_must_be_of_its_kind(name: str) -> None:
    """A name alone is not enough: another release of diffusers may use it for something else."""
    with pytest.raises(ValueError, match="has no network"):
        diffusers_class(name, MODEL._replace(names=(name,)))
    with pytest.raises(ValueError, match="has no scheduler"):
        diffusers_class("UNet2DModel", SCHEDULER._replace(names=("UNet2DModel",)))


def trap(path: Path, sprung: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(sprung), "w"))

    path.write_bytes(pickle.dumps(Trap()))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "a.ckpt", "pytorch_model.pth"])
def test_pickled_weights(folder: Path, name: str) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    trap(folder / "unet" / name, folder.parent / "sprung")
    assert "is a pickle" in refused(folder)
    trap(folder / "unet" / WEIGHTS, folder.parent / "sprung")  # one that calls itself safetensors
    assert "damaged" in refused(folder)


@pytest.mark.parametrize("path", ["../secret.safetensors", "/etc/passwd", "../../model/payload.py", "\x00", 3])
def test_an_index_of_shards_leads_nowhere(folder: Path, path: Any) -> None:
    """Parts are found by their names in the folder itself."""
    weights = {name: value.contiguous() for name, value in network().state_dict().items()}
    save_file(weights, folder / "secret.safetensors")
    (folder / "unet" / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, path)}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "no weights" in refused(folder)


def test_parts_of_weights_are_read(folder: Path) -> None:
    """The control: in parts, or in half precision alone, the same network."""
    x, wanted = torch.zeros(1, 1, 8, 8), sdediff.load(folder)
    weights = {name: value.contiguous() for name, value in wanted.network.inner.state_dict().items()}
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(weights)
    for part, own in enumerate((names[::2], names[1::2]), start=1):
        file = folder / "unet" / f"diffusion_pytorch_model-0000{part}-of-00002.safetensors"
        save_file({name: weights[name] for name in own}, file)
    with torch.no_grad():
        assert torch.equal(sdediff.load(folder).epsilon(x, 0.5), wanted.epsilon(x, 0.5))
    file.unlink()
    assert "missing" in refused(folder)


def test_half_precision_alone_is_what_was_saved(folder: Path) -> None:
    wanted = sdediff.load(folder).network.inner.half()
    (folder / "unet" / WEIGHTS).unlink()
    wanted.save_pretrained(folder / "unet", variant="fp16")
    found = sdediff.load(folder)
    assert found.dtype == torch.float32
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.network.inner.state_dict()[name], value.float()), name
    wanted.save_pretrained(folder / "unet", variant="bf16")
    assert "variants bf16, fp16" in refused(folder)


def test_a_description_cannot_fill_the_memory(folder: Path) -> None:
    """Sizes that are not the weights' are refused before anything of the size is made: this test would not end."""
    for settings in (
        {"block_out_channels": [200_000]},
        {"block_out_channels": [8] * 1000, "down_block_types": ["DownBlock2D"] * 1000},
        {"layers_per_block": 10**9},
        {"num_class_embeds": 10**11},
        {"in_channels": 10**9},
    ):
        whole = (folder / "unet" / "config.json").read_text()
        change(folder / "unet" / "config.json", **settings)
        refused(folder)
        (folder / "unet" / "config.json").write_text(whole)
    for settings in ({"num_train_timesteps": 10**10}, {"trained_betas": [0.1] * 200_000}):
        whole = (folder / "scheduler" / "scheduler_config.json").read_text()
        change(folder / "scheduler" / "scheduler_config.json", **settings)
        assert "should" in refused(folder)
        (folder / "scheduler" / "scheduler_config.json").write_text(whole)


@pytest.mark.parametrize("coder", ["vae", "vqvae"])
def test_pipelines_on_codes_are_named_for_what_they_are(folder: Path, coder: str) -> None:
    (folder / coder).mkdir()
    assert f"a latent pipeline: its network knows the codes of an autoencoder ({coder}/)" in refused(folder)
    assert sdediff.load(folder / "unet").data == sdediff.DataInfo((1, 8, 8), None, name="unet")
    (folder / "unet").rename(folder / "transformer")
    change(folder / "transformer" / "config.json", _class_name="DiTTransformer2DModel")
    assert "a pipeline with a transformer ('DiTTransformer2DModel')" in refused(folder)
    (folder / "transformer").rename(folder / "prior")
    assert "without unet/" in refused(folder)
