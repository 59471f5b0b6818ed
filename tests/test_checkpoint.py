"""Checkpoints: everything comes back exactly; what is damaged or a pickle is refused in one line."""

import json
import os
import pickle

import pytest
import torch

from sdediff.checkpoint import DESCRIPTION, TENSORS, latest_run, load, save
from sdediff.gaussian import Moments
from sdediff.networks import MLP, NETWORKS
from sdediff.parametrization import PREDICTIONS
from sdediff.score_model import ScoreModel
from sdediff.sde import DDPM, SDES, VESDE, VPSDE, CosineVPSDE, ExponentialVESDE, RectifiedFlow, SubVPSDE
from sdediff.types import DataInfo

PROCESSES = [
    VPSDE(0.12345678901234567, 17.3),
    CosineVPSDE(0.1 / 3.0),
    SubVPSDE(0.1, 19.0 / 7.0),
    VESDE(0.01 / 3.0, 50.0 / 7.0),
    ExponentialVESDE(25.0 / 7.0),
    RectifiedFlow(),
    DDPM.linear(7),
    DDPM.cosine(50),
    DDPM(torch.rand(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(1e-9, 0.999)),
]


def make(sde, *, network="mlp", shape=(3,), prediction="v_prediction", conditioning="logsnr", moments=True):
    net = NETWORKS[network](shape=shape, width=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    data = torch.randn(20, *shape, generator=generator)
    return ScoreModel(
        net,
        sde,
        prediction=prediction,
        conditioning=conditioning,
        moments=Moments.fit(data) if moments else None,
        data=DataInfo(shape=shape, levels=5, low=-0.5, high=1.0 / 3.0, name="some data"),
    )


def same(a, b, shape):
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    with torch.no_grad():
        return all(torch.equal(p, q) for p, q in zip(a.split(x, t), b.split(x, t), strict=True))


def test_every_process_is_tried():
    assert {type(sde) for sde in PROCESSES} == set(SDES.values())


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_processes_round_trip_exactly(tmp_path, sde):
    save(make(sde), tmp_path)
    again = load(tmp_path)
    assert again.sde == sde  # dataclass equality of float64 parameters: to the last bit
    assert same(make(sde), again, (3,))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("network", "shape"), [("mlp", (2,)), ("unet", (1, 5, 6))])
def test_models_round_trip_exactly(tmp_path, prediction, network, shape):
    model = make(VPSDE(), network=network, shape=shape, prediction=prediction, conditioning="time")
    save(model, tmp_path / "deep" / "run")
    again = load(tmp_path / "deep" / "run")
    assert same(model, again, shape)
    assert again.data == model.data
    assert again.conditioning == "time"
    assert not again.training
    for name in ("mean", "variances", "basis"):
        assert torch.equal(getattr(again.moments, name), getattr(model.moments, name))
    other = make(VPSDE(), network=network, shape=shape, prediction=prediction)  # asked by log-SNR: told apart
    assert not same(model, other, shape)


def test_without_moments_and_without_data(tmp_path):
    model = ScoreModel(MLP((2,), width=8), VPSDE())
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.moments is None
    assert again.data is None


def test_nothing_is_overwritten_without_force(tmp_path):
    first, second = make(VPSDE()), make(RectifiedFlow())
    save(first, tmp_path)
    with pytest.raises(FileExistsError, match="force"):
        save(second, tmp_path)
    assert load(tmp_path).sde == first.sde
    save(second, tmp_path, force=True)
    assert load(tmp_path).sde == second.sde
    assert sorted(p.name for p in tmp_path.iterdir()) == [DESCRIPTION, TENSORS]  # no temporary files stay


def test_foreign_parts_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="only networks that are torch modules can be saved, not function"):
        save(ScoreModel(lambda x, t: x, VPSDE()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pickles_are_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for name in ("model.pt", "model.ckpt", "model.pkl", "model.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ValueError, match="pickles are refused"):
            load(tmp_path / name)
    save(make(VPSDE()), tmp_path / "run")
    (tmp_path / "run" / TENSORS).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "run")
    assert not (tmp_path / "sprung").exists()


def damage(folder):
    """Every way to break a checkpoint, by name."""
    text, raw = (folder / DESCRIPTION).read_text(), (folder / TENSORS).read_bytes()
    description = json.loads(text)

    def changed(**values):
        return json.dumps({**description, **values})

    return {
        "cut description": (DESCRIPTION, text[: len(text) // 2]),
        "a list": (DESCRIPTION, "[1, 2]"),
        "no text": (DESCRIPTION, b"\xff\xfe\x00"),
        "later format": (DESCRIPTION, changed(format=99)),
        "unknown process": (DESCRIPTION, changed(sde={"name": "levy"})),
        "bad parameter": (DESCRIPTION, changed(sde={"name": "vp", "beta_min": -1.0, "beta_max": 2.0})),
        "unknown parameter": (DESCRIPTION, changed(sde={"name": "vp", "gamma": 1.0})),
        "unknown prediction": (DESCRIPTION, changed(prediction="guess")),
        "other width": (DESCRIPTION, changed(network={**description["network"], "width": 16})),
        "missing key": (DESCRIPTION, json.dumps({k: v for k, v in description.items() if k != "conditioning"})),
        "cut tensors": (TENSORS, raw[: len(raw) // 2]),
        "empty tensors": (TENSORS, b""),
        "noise": (TENSORS, bytes(range(256)) * 8),
    }


def test_damaged_checkpoints_are_refused_in_one_line(tmp_path):
    save(make(VPSDE()), tmp_path)
    for what, (name, content) in damage(tmp_path).items():
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=r"damaged") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value), what
        assert str(tmp_path) in str(caught.value), what
        (tmp_path / name).write_bytes(good)
    load(tmp_path)  # whole again


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        load(tmp_path / "nowhere")
    save(make(VPSDE()), tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load(tmp_path)


def test_latest_run_is_the_one_written_last(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run"):
        latest_run(tmp_path)
    for age, name in enumerate(("b", "c", "a")):
        save(make(VPSDE()), tmp_path / name)
        os.utime(tmp_path / name / DESCRIPTION, ns=(10**18 - age, 10**18 - age))
    assert latest_run(tmp_path) == tmp_path / "b"
    os.utime(tmp_path / "c" / DESCRIPTION, ns=(10**18 + 1, 10**18 + 1))
    assert latest_run(tmp_path) == tmp_path / "c"
