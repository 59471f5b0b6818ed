"""Configuration: files, overrides, defaults, and errors of one line."""

import json

import pytest
import torch

from sdediff.config import PROCESSES, Config, build
from sdediff.networks import MLP, Levelled, UNet
from sdediff.sde import DDPM, SDES, VPSDE, CosineVPSDE
from sdediff.types import DataInfo

DIGITS = DataInfo(shape=(1, 8, 8), levels=17, name="digits")


def test_json_and_toml_round_trip(tmp_path):
    config = Config().updated(
        {
            "sde.name": "vp",
            "sde.beta_max": "12.5",
            "network.name": "unet",
            "network.multipliers": "[1, 2]",
            "training.steps": "7",
            "training.learning_rate": "1e-3",
            "data.name": "moons",
        }
    )
    (tmp_path / "c.json").write_text(config.to_json())
    assert Config.load(tmp_path / "c.json") == config
    (tmp_path / "c.toml").write_text(
        '[data]\nname = "moons"\n[sde]\nname = "vp"\nbeta_max = 12.5\n'
        '[network]\nname = "unet"\nmultipliers = [1, 2]\n[training]\nsteps = 7\nlearning_rate = 1e-3\n'
    )
    model = build(Config.load(tmp_path / "c.toml"), DIGITS)
    assert model.sde == VPSDE(0.1, 12.5)
    assert model.network.network.config["multipliers"] == [1, 2]
    assert Config.load(tmp_path / "c.toml").training == config.training
    assert build(Config().updated({"network.width": "8"}), DIGITS).network.network.config["width"] == 8
    assert Config().updated({}) == Config()
    assert config != Config()


def test_the_defaults_are_the_digits_run():
    config = Config()
    assert config.data.name == "digits"
    model = build(config, DIGITS)
    assert isinstance(model.network, Levelled)
    assert isinstance(model.network.network, UNet)
    assert model.network.config == {"levels": 17, "low": -1.0, "high": 1.0}
    assert model.sde == CosineVPSDE()
    assert isinstance(build(config, DataInfo(shape=(2,))).network, MLP)  # points need no other setting


def test_the_exact_layer_goes_with_few_levels_only():
    def levels(info, **overrides):
        return build(Config().updated(overrides), info).network.config.get("levels")

    assert levels(DIGITS._replace(levels=256)) is None
    assert levels(DIGITS._replace(levels=None)) is None
    assert levels(DIGITS, **{"model.prediction": "epsilon"}) is None
    assert levels(DIGITS, **{"model.conditioning": "time"}) is None


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_can_be_named_alone(name):
    sde = build(Config().updated({"sde.name": name}), DataInfo(shape=(2,))).sde
    assert type(sde) in SDES.values()
    if name.startswith("ddpm"):
        assert build(Config().updated({"sde.name": name, "sde.steps": "9"}), DIGITS).sde.steps == 9


def test_naming_another_entry_drops_the_parameters_of_the_old():
    config = Config().updated({"sde.name": "vp", "sde.beta_min": "0.2"})
    assert config.updated({"sde.name": "flow"}).sde.parameters == {}
    assert config.updated({"training.steps": "3"}).sde.parameters == {"beta_min": 0.2}
    assert config.updated({"sde.name": "vp"}).sde.parameters == {"beta_min": 0.2}
    assert build(config, DIGITS).sde == VPSDE(0.2, 20.0)


def test_weights_are_a_function_of_the_seed():
    def weights(seed):
        model = build(Config().updated({"training.seed": seed}), DIGITS)
        return torch.cat([p.flatten() for p in model.parameters()])

    state = torch.random.get_rng_state()
    first, again, other = weights(1), weights(1), weights(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.steps": "0"}, "training.steps: input should be greater than 0, not '0'"),
        ({"training.steps": "-5"}, "not '-5'"),
        ({"training.steps": "many"}, "training.steps: .*integer.* not 'many'"),
        ({"training.steps": "1.5"}, "training.steps"),
        ({"training.ema": "1.0"}, "less than 1"),
        ({"training.learning_rate": "nan"}, "training.learning_rate"),
        ({"training.learning_rate": "inf"}, "training.learning_rate"),
        ({"training.step": "5"}, "unknown setting training.step; choose one of: steps, batch_size"),
        ({"optimiser.name": "sgd"}, "unknown setting 'optimiser.name'; sections are: data, sde"),
        ({"training": "5"}, "unknown setting 'training'"),
        ({"sde.name": "levy"}, "unknown process 'levy'; choose one of: vp, cosine"),
        ({"sde.beta_min": "0.1"}, "unknown setting sde.beta_min; choose one of: s"),
        ({"sde.name": "vp", "sde.beta_min": "small"}, "sde.beta_min: .*number.* not 'small'"),
        ({"sde.name": "vp", "sde.beta_min": "-1"}, "beta needs"),
        ({"network.name": "transformer"}, "unknown network 'transformer'; choose one of: mlp, unet"),
        ({"network.name": "unet", "network.depth": "3"}, "unknown setting network.depth; choose one of: size, width"),
        ({"network.name": "unet", "network.multipliers": "[1,"}, "is not a list"),
        ({"model.prediction": "guess"}, "unknown prediction 'guess'"),
        ({"model.conditioning": "colour"}, "unknown conditioning 'colour'"),
    ],
)
def test_wrong_settings_are_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        Config().updated(overrides)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_all_named():
    with pytest.raises(ValueError, match=r"data\.nam.*training\.steps") as caught:
        Config.of({"data": {"nam": "digits"}, "training": {"steps": -1}})
    assert "\n" not in str(caught.value)


def test_bad_files_are_one_line(tmp_path):
    cases = {"a.json": "{", "b.toml": "= 3", "c.json": "[1]", "d.yaml": "x: 1", "e.json": json.dumps({"sde": 3})}
    for name, text in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=r"cannot be read|table of sections|choose one of|sde: ") as caught:
            Config.load(tmp_path / name)
        assert "\n" not in str(caught.value), name
    (tmp_path / "f.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        Config.load(tmp_path / "f.json")
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        Config.load(tmp_path / "none.toml")


def test_settings_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        Config().training.steps = 3


def test_a_chain_in_a_configuration_is_the_chain():
    assert build(Config.of({"sde": {"name": "ddpm", "steps": 10}}), DIGITS).sde == DDPM.linear(10)
    assert build(Config.of({"sde": {"name": "ddpm-cosine"}}), DIGITS).sde == DDPM.cosine(1000)
