"""Damaged files are bad input: never a fault of the program, never more memory than the files fill."""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import damage
from sdediff import VESDE, VPSDE, DataInfo, ScoreModel, load, save
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.documents import MOST_BYTES, read_document
from sdediff.networks import MLP
from sdediff.tensors import read_shapes, read_tensors, write_tensors

sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # see test_diffusers

SEEDS = 60
KINDS: dict[str, Callable[[Path], damage.Target]] = {
    "points": lambda folder: damage.own_run(folder, (3,)),
    "images": lambda folder: damage.own_run(folder, (1, 4, 4)),
    "configurations": damage.configurations,
    "tuned": damage.tuned,
    "chosen": damage.chosen,
    "state": damage.state,
    "diffusers": damage.diffusers_folder,
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    if kind == "diffusers":
        pytest.importorskip("diffusers")
    target = KINDS[kind](tmp_path / "it")
    target.read()  # whole, it is read
    seeds = SEEDS // 2 if kind == "diffusers" else SEEDS  # a network of diffusers takes longer to build
    results = [damage.outcome(target, seed) for seed in range(seeds)]
    assert set(results) <= {"read", "refused"}, [result for result in results if result not in ("read", "refused")]
    assert results.count("refused") > seeds // 2
    target.read()


@pytest.mark.parametrize("fault", [KeyError("x"), RecursionError("deep"), ValueError("two\nlines"), MemoryError()])
def test_a_fault_is_found(fault: Exception, tmp_path: Path) -> None:
    """The control: what the program may not do with a damaged file is told from what it may."""
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}')

    def read() -> None:
        raise fault

    result = damage.outcome(damage.Target((file,), read), 0)
    assert type(fault).__name__ in result or "a bad message" in result
    assert file.read_text() == '{"a": 1}'


DOCUMENTS = {
    "not a number": ('{"a": 1' + "0" * 5000 + "}", "digits|which no setting can be"),
    "a large integer": ('{"a": 1' + "0" * 400 + "}", "an integer of 1329 bits, which no setting can be"),
    "twice the same": ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
    "depth": ("[" * 10**6, "nested too deeply"),
    "some depth": ('{"a":' * 40 + "1" + "}" * 40, "nested too deeply"),
    "half a character": (r'{"a": "\ud800"}', "surrogates"),
    "half a key": (r'{"\ud800": 1}', "surrogates"),
    "a list": ("[1]", "must hold an object, not a list"),
    "too large": (" " * (MOST_BYTES + 1), "larger than 32 MiB"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_documents_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    text, words = DOCUMENTS[case]
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_document(tmp_path / "x.json")


def test_only_files_are_read(tmp_path: Path) -> None:
    """A device would never end."""
    for path in (tmp_path, tmp_path / "none", Path("/dev/zero")):
        for read in (read_document, read_shapes, read_tensors):
            with pytest.raises(FileNotFoundError, match="no file"):
                read(path)


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    """The writer leaves the order of the metadata to chance; the file is read by others as before."""
    from safetensors import safe_open

    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float64)}
    metadata = {f"key{i}": str(i) for i in reversed(range(9))}
    contents = set()
    for i in range(6):
        write_tensors(tmp_path / f"{i}.safetensors", tensors, metadata)
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())


@pytest.mark.parametrize("size", [9, 2**20, 2**40, 2**63])
def test_headers_larger_than_the_file(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}")
    with pytest.raises(ValueError, match=f"its header of {size:,} bytes is larger than the file"):
        read_shapes(path)


def changed(run: Path, **values: object) -> None:
    path = run / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


WRONG = {
    "prediction": ({"prediction": 3}, "prediction: should be a name"),
    "levels": ({"data": {"shape": [3], "levels": -3, "low": -1.0, "high": 1.0, "name": ""}}, "data.levels"),
    "shape": ({"data": {"shape": [4], "levels": 3, "low": -1.0, "high": 1.0, "name": ""}}, r"for items \(3,\)"),
    "a large item": ({"data": {"shape": [10**9], "levels": 3, "low": -1.0, "high": 1.0, "name": ""}}, "entries"),
    "width": ({"network": {"name": "mlp", "shape": [3], "width": 20_000}}, "of other shapes: embedding.1.weight"),
    "blocks": ({"network": {"name": "mlp", "shape": [3], "width": 8, "blocks": 10**9}}, "a larger network"),
    "no blocks": ({"network": {"name": "mlp", "shape": [3], "width": 8, "blocks": 0}}, "unexpected: blocks.0"),
    "multipliers": ({"network": {"name": "unet", "shape": [3, 8, 8], "multipliers": [1] * 10**5}}, "(3, 8, 8)"),
    "betas": ({"sde": {"name": "ddpm", "betas": [0.1, 1.1]}}, "betas must lie in"),
    "exact layer": ({"exact_levels": {"levels": 4}}, "a network of 1 outputs"),
    "format": ({"format": 2}, "format: input should be 1"),
    "a word too much": ({"weights": "elsewhere"}, "unknown setting weights; choose one of: format, sde"),
}


@pytest.mark.parametrize("case", WRONG)
def test_descriptions_that_are_not_of_their_weights(case: str, tmp_path: Path) -> None:
    """Refused in one line by exit code 2, and before anything of the size that they name is allocated."""
    save(ScoreModel(MLP((3,), width=8), VPSDE(), data=DataInfo((3,), 5)), tmp_path)
    values, words = WRONG[case]
    changed(tmp_path, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB; the width alone is 18 GiB
    assert CliRunner().invoke(main, ["info", "--run", str(tmp_path)]).exit_code == 2


def test_a_network_that_looks_at_its_numbers_is_built_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constructor knows no ``meta`` device; what it may register is bounded all the same."""
    from sdediff.networks import NETWORKS

    class Looking(MLP):
        """A network whose constructor asks for a number."""

        def __init__(self, shape: tuple[int, ...], width: int = 8, blocks: int = 1) -> None:
            super().__init__(shape, width=width, blocks=blocks)
            self.rates = [rate.item() for rate in torch.linspace(0.0, 1.0, 3)]
            self.config = {"shape": shape, "width": width, "blocks": blocks}

    monkeypatch.setitem(NETWORKS, "looking", Looking)
    model = ScoreModel(Looking((3,)), VPSDE())
    save(model, tmp_path)
    assert load(tmp_path).network.rates == [0.0, 0.5, 1.0]
    for size in ({"width": 4096}, {"blocks": 10**9}):
        changed(tmp_path, network={"name": "looking", "shape": [3], "width": 8, "blocks": 1, **size})
        with pytest.raises(ValueError, match=r"a larger network|of other shapes"):
            load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(Config(), DataInfo((2,))).to(dtype)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.dtype == dtype
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none(number: float, tmp_path: Path) -> None:
    model = ScoreModel(MLP((3,), width=8), VESDE())
    with torch.no_grad():
        next(model.parameters())[0] = number
    save(model, tmp_path)
    with pytest.raises(ValueError, match="holds NaN or infinite numbers"):
        load(tmp_path)


def test_the_layout_of_the_first_release_is_read(tmp_path: Path) -> None:
    """It had the exact layer among the network's parameters."""
    model = build(Config(), DataInfo((1, 4, 4), 5, -0.5, 0.5))
    save(model, tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    head = described.pop("exact_levels")
    described["network"].pop("outputs")
    described["network"] |= head
    (tmp_path / "model.json").write_text(json.dumps(described))
    again, x = load(tmp_path), torch.zeros(2, 1, 4, 4)
    assert again.network.config == model.network.config
    assert torch.equal(again.epsilon(x, 0.5), model.epsilon(x, 0.5))
    plain = ScoreModel(MLP((3,), width=8), VPSDE())
    save(plain, tmp_path, force=True)
    changed(tmp_path, network={**plain.network.config, "name": "mlp", "levels": None, "low": -1.0, "high": 1.0})
    described = json.loads((tmp_path / "model.json").read_text())
    described["network"].pop("outputs")
    (tmp_path / "model.json").write_text(json.dumps(described))
    assert isinstance(load(tmp_path).network, MLP)
