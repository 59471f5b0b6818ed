"""The layers of the library, read from its imports, and what no module may do."""

from __future__ import annotations

import ast
from collections.abc import Container, Mapping
from pathlib import Path

import pytest

import sdediff

ROOT = Path(sdediff.__file__).parent

LAYERS = {
    "types": 0, "numerics": 0, "noise": 0, "gaussian": 0, "moments_storage": 0,
    "bases": 0, "covariances": 0, "foreign": 0, "conditions": 0, "execution": 0, "tables": 0, "documents": 0,
    "tensors": 0,
    "files": 0, "interrupt": 0, "devices": 0, "progress": 0, "extras": 0, "frames": 0, "microbatches": 0,
    "sde": 1, "networks": 1, "data": 1, "quality": 1,
    "grids": 2, "parametrization": 2, "instants": 2, "conditioning": 2, "denoising": 2, "denoiser": 2,
    "score_model": 2, "wrappers": 2, "guidance": 2,
    "analytic": 3, "dynamics": 3, "integrators": 3,
    "samplers": 4,
    "options": 5, "sampling": 5,
    "tuning": 6, "tuning.store": 9, "tuning.choice_store": 9,
    "transport": 6, "likelihood": 6, "training.objective": 6, "training.ema": 6, "training.batches": 6,
    "training.time_laws": 6, "training.weightings": 6, "training.variational": 6,
    "training.schedules": 6, "settings": 6,
    "staged": 3, "latent": 7, "stage_storage": 8,
    "config": 7, "generation": 7, "estimation": 7,
    "interop": 7,
    "checkpoint": 8, "description": 8, "plots": 8, "report": 0,
    "training": 9, "evaluation": 9, "selftest": 9, "evaluation.solvers": 6, "evaluation.comparison": 6,
    "evaluation.distances": 1,
    "__init__": 10,
    "cli": 11,
    "__main__": 12,
}  # fmt: skip
"""A module imports lower layers, its own layer, or its own folder. ``training``'s laws of loss and average are settings
(6); its loop and files stand on configuration and checkpoints (9)."""

OWNERS = {
    "torchdiffeq": ("integrators",),
    "torchsde": ("integrators",),
    "matplotlib": ("plots",),
    "click": ("cli",),
    "diffusers": ("interop",),
    "pyarrow": ("data",),
    "datasets": ("data",),
    "huggingface_hub": ("interop",),
    "PIL": ("data", "plots", "training"),
    "sklearn": ("data", "evaluation"),
    "pandas": ("frames",),
    "accelerate": ("training", "evaluation"),
    "tensorboard": ("training",),
    "triton": ("noise",),
}
"""Packages that only these may import."""

FORBIDDEN_CALLS = {
    "torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.seed", "np.random.seed",
    "numpy.random.seed", "random.seed", "torch.set_rng_state", "pickle.load", "pickle.loads", "torch.load", "eval",
    "exec",
}  # fmt: skip
"""Global state, and files that execute."""


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """The name of a module below the package, dotted."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def layer(name: str) -> int:
    """The layer of a dotted name below the package: that of its longest part in the table; public names are in
    ``__init__``."""
    parts = name.split(".")
    known = [LAYERS[key] for key in (".".join(parts[:k]) for k in range(len(parts), 0, -1)) if key in LAYERS]
    return known[0] if known else LAYERS["__init__"]


def imports(tree: ast.AST) -> set[str]:
    """Every module named by an import statement, inside functions and for type checkers too, with the names taken."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("relative import")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def target(name: str, known: Container[str]) -> str:
    """The module that an imported name comes from: itself, or the one it is taken from."""
    return name if name in known else name.rpartition(".")[0]


def graph(trees: Mapping[str, ast.AST]) -> dict[str, set[str]]:
    """The modules that each module imports, now or later."""
    return {own: {target(name, trees) for name in imports(tree)} & set(trees) - {own} for own, tree in trees.items()}


def in_circles(edges: Mapping[str, set[str]]) -> set[str]:
    """What is left after taking away, again and again, what imports nothing that is left."""
    left = set(edges)
    while free := {own for own in left if not edges[own] & left}:
        left -= free
    return left


def upward(own: str, names: set[str]) -> set[str]:
    """The imports that climb."""
    targets = {name: name.partition(".")[2] for name in names if name.startswith("sdediff.")}
    return {
        name
        for name, target in targets.items()
        if target.split(".")[0] != own.split(".")[0] and layer(target) > layer(own)
    }


def foreign(own: str, names: set[str]) -> set[str]:
    """The imports of packages that belong to another room."""
    room = own.split(".")[0]
    return {name for name in names if room not in OWNERS.get(name.split(".")[0], (room,))}


def forbidden(tree: ast.AST) -> set[str]:
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return calls & FORBIDDEN_CALLS


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module(path: Path) -> None:
    own, tree = module(path), parsed(path)
    names = imports(tree)
    assert own.split(".")[0] in LAYERS, f"{path} stands in no layer"
    assert "relative import" not in names
    assert upward(own, names) == set()
    assert foreign(own, names) == set()
    assert forbidden(tree) == set()


def test_no_module_imports_itself_through_others() -> None:
    """The graph of imports between modules, deferred ones too, has an order."""
    trees = {f"sdediff.{module(path)}".removesuffix(".__init__"): parsed(path) for path in modules()}
    assert in_circles(graph(trees)) == set()


def test_faults_are_caught() -> None:
    tree = ast.parse(
        "import torch, pickle\nfrom sdediff.samplers import SAMPLERS\nimport matplotlib.pyplot as plt\n"
        "def f():\n    from sdediff import solve\n    torch.manual_seed(0)\n    pickle.load(open('x'))\n"
    )
    assert upward("grids", imports(tree)) == {"sdediff.samplers.SAMPLERS", "sdediff.solve"}
    assert upward("cli", imports(tree)) == set()
    assert foreign("grids", imports(tree)) == {"matplotlib.pyplot"}
    assert forbidden(tree) == {"torch.manual_seed", "pickle.load"}
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


DEFERRED = ("def f():\n    import a.y", "if TYPE_CHECKING:\n    from a.y import Name")


@pytest.mark.parametrize("later", DEFERRED, ids=["in-a-function", "for-type-checkers"])
def test_deferred_imports_count(later: str) -> None:
    there = "from a.x import Other"
    assert in_circles(graph({"a.x": ast.parse(later), "a.y": ast.parse(there)})) == {"a.x", "a.y"}
    assert in_circles(graph({"a.x": ast.parse(""), "a.y": ast.parse(there)})) == set()
    assert upward("grids", imports(ast.parse(later.replace("a.y", "sdediff.samplers")))) != set()
