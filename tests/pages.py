"""What tests of README and site share: pages, their code, their links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

import sdediff

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
BLOCK = re.compile(r"^```(?:python|\{code-cell\} python)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```bash\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)


def run_blocks(page: Path) -> None:
    """Run the Python of a page from top to bottom, and leave tables, generator and figures as they were."""
    before, scope = dict(sdediff.SAMPLERS), dict[str, Any]()
    mpl.use("Agg")
    try:
        with torch.random.fork_rng():
            for block in BLOCK.findall(page.read_text(encoding="utf-8")):
                exec(compile(block, str(page), "exec"), scope)
    finally:
        sdediff.SAMPLERS.clear()
        sdediff.SAMPLERS.update(before)
        from matplotlib import pyplot as plt

        plt.close("all")


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files or headings that are not there; links of the web are left out."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken
