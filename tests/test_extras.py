"""The light core: what the library imports beside it stands in an extra, and one that is missing is named."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import sdediff
from sdediff import data, plots
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.evaluation import fit_mixture
from sdediff.evaluation.processes import Processes
from sdediff.extras import EXTRAS, extra, require
from sdediff.frames import frame
from sdediff.interop import fetch_model
from sdediff.interop.network import diffusers
from sdediff.training.record import Record
from sdediff.types import DataInfo

ROOT = Path(__file__).parents[1]
OPTIONAL = {package: name for name, packages in EXTRAS.items() for package in packages}
DISTRIBUTIONS = {"scikit-learn": "sklearn", "pillow": "PIL"}
CORE = {"triton", "pydantic_core"}  # come with torch, and with pydantic
INSIDE = {"torch.utils.tensorboard": "tensorboard"}
IMPORTERS = {"PIL": ("sdediff.data.images", "sdediff.data.folders"), "tensorboard": tuple(INSIDE)}
"""Modules that import a package as they are imported."""


def packages(requirements: list[str]) -> set[str]:
    """The packages that requirements name, as they are imported."""
    names = (requirement.partition(">=")[0].strip() for requirement in requirements)
    return {DISTRIBUTIONS.get(name, name) for name in names if not name.startswith("sdediff[")}


def faults(tree: ast.AST, core: set[str]) -> list[str]:
    """The imports of packages outside the core that stand neither in a ``with extra(...)`` of theirs nor for types."""
    found: list[str] = []

    def visit(node: ast.AST, open_: str | None) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.With) and ast.unparse(node.items[0].context_expr).startswith("extra("):
            call = node.items[0].context_expr
            open_ = ast.literal_eval(call.args[0])
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            package = INSIDE.get(name, name).partition(".")[0]
            if package not in core and OPTIONAL.get(package, "none") != open_:
                found.append(f"line {node.lineno}: {name}")
        for child in ast.iter_child_nodes(node):
            visit(child, open_)

    visit(tree, None)
    return found


def core_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return packages(project["dependencies"]) | set(sys.stdlib_module_names) | CORE | {"sdediff"}


def test_every_import_is_of_the_core_or_of_its_extra() -> None:
    core = core_packages()
    for path in sorted((ROOT / "sdediff").rglob("*.py")):
        assert faults(ast.parse(path.read_text(encoding="utf-8")), core) == [], path


def test_faults_are_found() -> None:
    core = core_packages()
    for text in (
        "import matplotlib",
        "def f():\n    from PIL import Image",
        "with extra('train'):\n    import pyarrow",
        "from torch.utils.tensorboard import SummaryWriter",
        "import polars",
    ):
        assert len(faults(ast.parse(text), core)) == 1, text
    right = "if TYPE_CHECKING:\n    import matplotlib\nwith extra('plots', 'x'):\n    import PIL\nimport torch, json"
    assert faults(ast.parse(right), core) == []


def test_the_table_of_extras_is_that_of_the_installation() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {name: packages(extras[name]) for name in EXTRAS} == {name: set(known) for name, known in EXTRAS.items()}


def block(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make the imports of a package and of its modules fail, as where it is not installed."""
    loaded = {name for name in sys.modules if name.partition(".")[0] == package} | {package}
    for name in loaded:
        monkeypatch.setitem(sys.modules, name, None)
    for name in IMPORTERS.get(package, ()):
        monkeypatch.delitem(sys.modules, name, raising=False)


def photos(folder: Path) -> None:
    from PIL import Image

    Image.new("L", (2, 2)).save(folder / "a.png")


USES: dict[str, tuple[Callable[[Path], object], ...]] = {
    "matplotlib": (
        lambda folder: plots.scatter(torch.zeros(3, 2), folder / "x.png"),
        lambda folder: plots.trade_off([], folder / "x.png", xlabel="x"),
        lambda folder: sdediff.train(torch.randn(50, 2), steps=1, run=folder / "run"),
    ),
    "PIL": (
        lambda folder: plots.image_grid(torch.zeros(1, 1, 2, 2), folder / "x.png"),
        lambda folder: data.load_dataset(folder),
    ),
    "accelerate": (lambda _: sdediff.train(torch.randn(50, 2), steps=1), lambda _: Processes()),
    "sklearn": (lambda _: data.load_dataset("digits"), lambda _: fit_mixture(torch.randn(20, 2))),
    "tensorboard": (lambda folder: Record(folder, 0),),
    "diffusers": (lambda _: diffusers(),),
    "pyarrow": (lambda folder: data.load_dataset(folder / "x.csv"),),
    "pandas": (lambda _: frame({"a": torch.zeros(2)}),),
    "datasets": (lambda _: data.load_dataset("hf:mnist"),),
    "huggingface_hub": (lambda _: fetch_model("google/ddpm-cifar10-32"),),
}


@pytest.mark.parametrize("package", OPTIONAL)
def test_what_is_missing_is_named_with_its_command(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    block(monkeypatch, package)
    for use in USES[package]:
        with pytest.raises(ValueError, match=r"pip install") as caught:
            use(tmp_path)
        message = str(caught.value)
        assert f"{package}: pip install 'sdediff[{OPTIONAL[package]}]'" in message
        assert "\n" not in message
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "x.png").exists()


def test_what_is_broken_says_why() -> None:
    with pytest.raises(ValueError, match=r"pictures need matplotlib or PIL \(no GLIBC\): pip install"), extra("plots"):
        raise ImportError("no GLIBC", name="libfoo")
    require(*(set(EXTRAS) - {"hub", "frames"}))


@pytest.mark.parametrize(
    "arguments", [("train", "--data", "moons"), ("sample", "--run", "run"), ("compare", "--run", "run")]
)
def test_commands_end_before_the_work(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sdediff.save(build(Config(), DataInfo((2,), name="moons")), "run")
    block(monkeypatch, "matplotlib")
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 2
    assert "error: pictures need matplotlib: pip install 'sdediff[plots]'" in result.stderr
    assert {path.name for path in tmp_path.rglob("*") if path.suffix in (".npz", ".png", ".csv")} == set()


CODE = """
import sys
for name in {names}:
    sys.modules[name] = None
from click.testing import CliRunner
import sdediff
from sdediff.cli import COMMANDS, main
from sdediff.config import Config, build
for command in COMMANDS:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0, (command, result.output)
data = sdediff.analytic.GaussianMixture(means=[[-1.0, 0.0], [1.0, 1.0]], covariances=[0.1, 0.3])
x = sdediff.sample(data.model(sdediff.VPSDE()), (4, 2), steps=5)
sdediff.log_likelihood(data.model(sdediff.VPSDE()), x, steps=5)
"""


def test_the_core_suffices_for_the_verbs_and_for_every_help() -> None:
    code = CODE.format(names=sorted(OPTIONAL))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
