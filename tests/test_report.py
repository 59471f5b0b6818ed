"""``sdediff report``: one page that asks for nothing, on runs that are whole and on runs that are damaged."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import sdediff
from sdediff import DataInfo, latent
from sdediff.checkpoint import save
from sdediff.cli import main, sections
from sdediff.cli import report as command
from sdediff.report import Section, page, table
from untrained import untrained_run

TITLES = ["Configuration", "Training", "Samples", "Likelihood", "Error against forwards", "Provenance"]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements of a page: headings, pictures, references; elements that are not closed are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.headings: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def external(self) -> list[str]:
        return [value for value in self.references if not value.startswith(("data:", "#"))]


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["report", *(str(arg) for arg in args)])


def done(*args: object) -> tuple[dict[str, Any], Page]:
    result = call(*args, "--items", 6, "--json")
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures, Page(Path(figures["report"]).read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few solvers, steps and starts: the sections are tested, not the solvers."""
    monkeypatch.setattr(sections, "SHOWN", (("ode", 3), ("sde", 4)))
    monkeypatch.setattr(sections, "COMPARED", ("ode", "ddim"))
    monkeypatch.setattr(sections, "TOLERANCE", 1e-2)
    monkeypatch.setattr(sections, "POINTS", 20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an untrained network on points, with metrics."""
    run = untrained_run(tmp_path_factory.mktemp("report") / "a <b> & run")
    lines = [{"step": 10 * k, "loss": 1.0 / k, "held_out_loss": 1.5 / k} for k in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / whole.name)


def test_all_sections_are_in_one_page_that_asks_for_nothing(run: Path) -> None:
    figures, shown = done(run)
    assert figures["report"] == str(run / "report.html")
    assert figures["left_out"] == {}
    assert shown.headings == TITLES
    assert shown.external == []
    assert not {"script", "iframe", "object"} & shown.tags
    assert "http" not in "".join(value for value in shown.references if not value.startswith("data:"))
    images = [value for value in shown.references if value.startswith("data:image/png;base64,")]
    assert len(images) == 5  # losses, two solvers, likelihoods, errors
    assert all(base64.b64decode(value.partition(",")[2]).startswith(b"\x89PNG\r\n") for value in images)
    text = "".join(shown.words)
    assert "a <b> & run" in text
    assert "b" not in shown.tags  # the name of the run is text
    assert f"{figures['likelihood']['mean']:.5g}" in text
    assert re.search(r"SHA-256 of model.safetensors\s*[0-9a-f]{64}", text)
    assert {row["solver"] for row in figures["comparison"]["rows"]} == {"ode", "ddim"}
    assert figures["training"]["last"]["loss"] == pytest.approx(1.0 / 3.0)


def test_external_references_are_caught() -> None:
    """Negative control of the test above."""
    text = page("x", "", "", [Section("S", ['<img src="https://example.org/x.png">'])])
    assert Page(text).external == ["https://example.org/x.png"]


def test_texts_from_outside_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    shown = Page(page(evil, evil, "", [Section(evil, [table([[evil, evil]], [evil, evil])])]))
    assert "script" not in shown.tags
    assert "".join(shown.words).count(evil) == 9  # twice the title, subtitle, link, heading, four cells


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b'{"step": 1, "loss": 1.0}\n{"step": 2, "lo', b"[1]\nnull\n"])
def test_damaged_metrics_do_not_break_it(run: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ["Configuration", "Training", "Provenance"]  # the sections that read the files
    monkeypatch.setattr(command, "SECTIONS", {title: sections.SECTIONS[title] for title in read})
    (run / "metrics.jsonl").write_bytes(content)
    figures, shown = done(run)
    assert shown.headings == read
    assert figures["left_out"] == {}


def test_a_part_that_cannot_be_had_is_left_out_with_its_reason(run: Path) -> None:
    (run / "config.json").write_text("{")
    figures, shown = done(run)
    assert set(figures["left_out"]) == {"Configuration", "Likelihood"}
    assert shown.headings == TITLES
    assert sum(word.startswith("Left out: ") for word in shown.words) == 2


def test_files_are_kept_unless_forced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.html"
    out.write_text("old")
    refused = call(run, "--out", out)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert out.read_text() == "old"
    figures, _ = done(run, "--out", out, "--force")
    assert figures["report"] == str(out)
    assert call(run, "--run", run).exit_code == 2
    assert call(run, "--out", tmp_path / "x.png").exit_code == 2


def test_an_interrupted_report_writes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sections, "compare", interrupt)
    assert call(run, "--items", 6).exit_code == 130
    assert not list(run.glob("report*"))


def test_vae_and_autoencoder(tmp_path: Path) -> None:
    """A VAE has its bound; the codes of an autoencoder have no law, so it is refused in one line."""
    info = DataInfo((6,))
    for kind in ("vae", "ae"):
        save(latent.build_first_stage(kind, info, code=(2,), coder="linear"), tmp_path / kind)
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).normal(size=(20, 6)))
    figures, shown = done(tmp_path / "vae", "--data", data)
    assert figures["left_out"] == {}
    assert figures["likelihood"]["method"] == "stages"
    assert shown.headings == TITLES
    refused = call(tmp_path / "ae", "--data", data)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1


def test_a_latent_run(tmp_path: Path) -> None:
    """Both stages: the losses of the model and of its autoencoder, the bound of both, weights of both."""
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    sdediff.train(
        x, run=tmp_path / "run", model="latent", code=(2,), network="mlp", steps=4, first_stage_steps=4,
        batch_size=16, sample_every=0, progress=False, device="cpu",
    )  # fmt: skip
    np.save(tmp_path / "x.npy", x.numpy())
    figures, shown = done(tmp_path / "run", "--data", tmp_path / "x.npy")
    assert figures["left_out"] == {}
    assert set(figures["training"]) == {"last", "autoencoder"}
    assert figures["likelihood"]["method"] == "stages"
    assert {"SHA-256 of first_stage/model.safetensors", "SHA-256 of score_model/model.safetensors"} <= set(
        figures["provenance"]
    )
    assert shown.headings == TITLES
