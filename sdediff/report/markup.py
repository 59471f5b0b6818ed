"""Parts of a page of HTML, each a text in which whatever comes from outside is escaped.

The page holds its style and its pictures, and its policy (Content-Security-Policy) forbids a browser to fetch anything.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from sdediff.report.style import STYLE

_PAGE = Template(
    """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$subtitle</p>
$figures
</header>
<nav>$links</nav>
<main>
$sections
</main>
</body>
</html>
"""
)


class Section(NamedTuple):
    """A part of the page with a heading.

    Attributes:
        title: title of the section.
        blocks: the section's content, HTML.
    """

    title: str
    blocks: Sequence[str]

    @property
    def place(self) -> str:
        """Return the section's name in links.

        >>> sdediff.report.Section("Error against forwards", []).place
        'error-against-forwards'
        """
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def page(title: str, subtitle: str, figures: str, sections: Sequence[Section]) -> str:
    """Return the whole page.

    Args:
        title: title of the page, text.
        subtitle: a sentence below it, text.
        figures: what stands above all sections, HTML.
        sections: the sections in order.

    >>> "<h2>Samples</h2>" in sdediff.report.page("digits", "", "", [sdediff.report.Section("Samples", [])])
    True
    """
    links = "\n".join(f'<a href="#{section.place}">{escape(section.title)}</a>' for section in sections)
    return _PAGE.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        style=STYLE,
        figures=figures,
        links=links,
        sections="\n".join(_section(section) for section in sections),
    )


def _section(section: Section) -> str:
    content = "\n".join(section.blocks)
    return f'<section id="{section.place}">\n<h2>{escape(section.title)}</h2>\n{content}\n</section>'


def paragraph(text: str) -> str:
    """Return a paragraph of a text.

    >>> sdediff.report.paragraph("a < b")
    '<p>a &lt; b</p>'
    """
    return f"<p>{escape(text)}</p>"


def subtitle(text: str) -> str:
    """Return a heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def details(text: str, block: str) -> str:
    """Return a block that opens at a click on a text, and is open on paper."""
    return f"<details><summary>{escape(text)}</summary>\n{block}\n</details>"


def figures(values: Mapping[str, str]) -> str:
    """Return a few values by name, in large type."""
    entries = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in values.items())
    return f'<dl class="figures">{entries}</dl>' if values else ""


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    r"""Return a table of texts whose first column names the rows.

    Args:
        rows: the rows, texts each.
        head: names of the columns; none by default.

    >>> sdediff.report.table([["ode", "1e-3"]])
    '<div class="wide"><table>\n<tr><th scope="row">ode</th><td>1e-3</td></tr>\n</table></div>'
    """
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in head) + "</tr>"] if head else []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def picture(draw: Callable[[Path], None], caption: str) -> str:
    """Return a picture with its caption, inside the page.

    Args:
        draw: function that writes a PNG to the path it is given.
        caption: text below the picture, also read aloud in its place.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        content = base64.b64encode(path.read_bytes()).decode()
    words = escape(caption)
    image = f'<img src="data:image/png;base64,{content}" alt="{words}">'
    return f"<figure>\n{image}\n<figcaption>{words}</figcaption>\n</figure>"


def pictures(several: Sequence[str]) -> str:
    """Return pictures side by side, as many as the screen is wide for."""
    return '<div class="pictures">\n' + "\n".join(several) + "\n</div>"
