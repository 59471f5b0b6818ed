"""The look of a report, on screens of any width and on paper."""

STYLE = """\
:root { color-scheme: light; --ink: #1f2933; --accent: #1f4e79; --pale: #5f6b76; --line: #dde1e5; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 3rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1, h2, h3 { line-height: 1.2; color: var(--accent); overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.9rem; }
h2 { margin: 2.5rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.35rem; }
h3 { margin: 1.6rem 0 .6rem; font-size: 1.05rem; }
p { max-width: 46rem; overflow-wrap: anywhere; }
header p, figcaption, nav { color: var(--pale); }
nav a { color: var(--accent); margin-right: 1rem; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.figures div { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
.figures dt { color: var(--pale); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 5.4rem; }
figure { margin: 1rem 0; }
figcaption { font-size: .88rem; }
img { display: block; max-width: 100%; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.pictures figure { margin: 0; }
.pictures img { width: 100%; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 30rem) {
  table { font-size: .8rem; }
  th, td { padding-right: .4rem; }
  td { min-width: 4.4rem; }
}
@media print {
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, h2 + p, h3 + p { break-after: avoid; }
  figure, table, tr, p, .figures div { break-inside: avoid; }
  .wide { overflow: visible; }
  .pictures { grid-template-columns: repeat(3, 1fr); }
  details { columns: 2; }
  details table { break-inside: auto; font-size: 8pt; }
  summary { column-span: all; }
  details:not([open])::details-content { content-visibility: visible; block-size: auto; }
}
"""
"""Style sheet of the page."""
