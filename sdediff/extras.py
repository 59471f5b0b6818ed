"""Packages that only some work needs, the extras of the installation, imported where they are used.

An extra that is missing is named in one line with the command that installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EXTRAS = {
    "plots": ("matplotlib", "PIL"),
    "train": ("accelerate", "sklearn", "tensorboard"),
    "diffusers": ("diffusers",),
    "tables": ("pyarrow",),
    "frames": ("pandas",),
    "hub": ("datasets", "huggingface_hub"),
}
"""Names of extras to the packages that the library imports of them."""

_WORK = {
    "plots": "pictures need",
    "train": "training needs",
    "diffusers": "models of diffusers need",
    "tables": "tables need",
    "frames": "frames of results need",
    "hub": "data sets of Hugging Face need",
}


@contextmanager
def extra(name: str, work: str = "") -> Iterator[None]:
    """Import packages of an extra inside a ``with`` block.

    Args:
        name: name of the extra, of :data:`EXTRAS`.
        work: beginning of the message, in place of the extra's own.

    Raises:
        ValueError: if one is missing or broken; in one line, with the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        raise ValueError(_line(name, package, work, "" if package in EXTRAS[name] else str(error))) from error


def require(*names: str) -> None:
    """Check that extras are installed, without importing them: before work whose end needs them.

    Raises:
        ValueError: if a package is missing; in one line, with the command that installs it.
    """
    for name in names:
        for package in EXTRAS[name]:
            if find_spec(package) is None:
                raise ValueError(_line(name, package))


def _line(name: str, package: str, work: str = "", reason: str = "") -> str:
    """Return the message; a broken package is reported with its own reason."""
    what = f"{' or '.join(EXTRAS[name])} ({reason})" if reason else package
    return f"{work or _WORK[name]} {what}: pip install 'sdediff[{name}]'"
