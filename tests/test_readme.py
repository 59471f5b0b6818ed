"""The README is short, its examples run, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pages import BLOCK, broken_links, run_blocks

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_size() -> None:
    assert len(TEXT.encode()) <= 6000
    blocks = BLOCK.findall(TEXT)
    assert len(blocks) == 4
    assert max(sum(bool(line.strip()) for line in block.splitlines()) for block in blocks) <= 6


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(README)
    found = re.search(r"round trip (\S+)", capsys.readouterr().out)
    assert found is not None
    assert float(found.group(1)) < 1e-3


def test_links_lead_somewhere() -> None:
    assert not broken_links(README)
    assert {"docs/index.md", "docs/pictures/glance.png"} <= set(re.findall(r"\]\(([^)#]+)", TEXT))
