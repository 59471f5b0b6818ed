"""The public names: all there, imported lazily, and the same for type checkers."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import sdediff


@pytest.mark.parametrize("name", sdediff.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(sdediff, name)
    assert name in dir(sdediff)
    assert isinstance(value, dict) or (value.__doc__ or "").strip()


def test_type_checkers_see_the_same_names():
    """Each from the module that it is imported from at run time."""
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(sdediff))) if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: f"{node.module}.{alias.name}" for node in nodes for alias in node.names if alias.asname}
    homes = {name: f"sdediff.{module}.{name}" for name, module in sdediff._HOME.items()}
    modules = {name: home for name, home in typed.items() if home == f"sdediff.{name}"}
    assert typed == homes | modules
    assert {"analytic", "data", "samplers", "training", "tuning"} <= set(modules)
    for home in modules.values():
        import_module(home)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = sdediff.nope


def test_importing_the_package_loads_no_torch():
    code = "import sys, sdediff; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, sdediff; sdediff.VPSDE; sys.exit('torch' in sys.modules)"  # negative control
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
