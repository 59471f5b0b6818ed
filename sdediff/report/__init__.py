"""Reports of runs: one page of HTML that holds its pictures and asks for nothing else."""

from sdediff.report.markup import Section, details, figures, page, paragraph, picture, pictures, subtitle, table

__all__ = ["Section", "details", "figures", "page", "paragraph", "picture", "pictures", "subtitle", "table"]
