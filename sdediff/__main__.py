"""``python -m sdediff`` is the command ``sdediff``."""

from sdediff.cli import main

main(prog_name="sdediff")
