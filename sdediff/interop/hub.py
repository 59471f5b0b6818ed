"""Models of the Hugging Face hub, fetched because the user said so, and never otherwise."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from sdediff.extras import extra

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors")  # nothing that executes


def is_hub_name(path: Path) -> bool:
    """Return whether a path is no folder but could be a name of the hub, ``owner/name``."""
    return not path.exists() and _NAME.fullmatch(str(path)) is not None


def fetch_model(name: str) -> Path:
    """Fetch a model into the hub's own cache: descriptions and safetensors.

    Args:
        name: ``owner/name``.

    Returns:
        The folder.

    Raises:
        ValueError: if it cannot be fetched, or huggingface_hub is not installed; in one line.
    """
    with extra("hub", f"fetching {name} needs"):
        import huggingface_hub
    _LOG.info("fetching %s", name)
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # of its HTTP client, which changes from release to release
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{name} cannot be fetched: {reason}") from None
