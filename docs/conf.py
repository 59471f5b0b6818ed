"""Configure the site: `sphinx-build -W -b html docs docs/_build/html`."""

from typing import Any

import sdediff

project = "sdediff"
author = project_copyright = "the sdediff authors"
release = version = sdediff.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "sdediff"
html_theme_options = {"light_css_variables": {"font-stack": "system-ui, sans-serif"}}
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
highlight_language = "none"

nb_execution_mode = "cache"  # a tutorial runs again when its code has changed
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"

autodoc_typehints = "none"  # signatures and argument lines say them
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
copybutton_exclude = ".linenos, .gp, .go"

_ALIASES = {f"sdediff.{home}.{name}": f"sdediff.{name}" for home, names in sdediff._HOMES.items() for name in names}


def public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find the public name of what a docstring names by its home."""
    name = _ALIASES.get(node.get("reftarget", ""))
    if name is None or node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, content)


def setup(app: Any) -> None:
    """Register what the configuration adds to Sphinx."""
    app.connect("missing-reference", public)
