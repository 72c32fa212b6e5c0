"""Sphinx's configuration; :mod:`docs.build` stages the pages and runs it."""

from typing import Any

project = "distillstack"
author = "the distillstack authors"
copyright = "the distillstack authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
html_theme = "furo"
html_title = "distillstack"
html_theme_options = {"source_repository": "", "footer_icons": []}
html_show_sphinx = False
html_copy_source = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Sections of benchmarks/ begin where a reader of the repository needs them; a page there may skip a level.
suppress_warnings = ["myst.header"]
exclude_patterns = ["docs/glossary-*"]
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
nitpicky = False


def ours(app: Any, what: str, name: str, found: object, skip: bool, options: object) -> bool | None:
    """Leave out what classes inherit from scikit-learn, whose own pages describe it."""
    theirs = str(getattr(found, "__module__", "")).startswith("sklearn") or name.endswith("_request")
    return True if theirs else None


def setup(app: Any) -> None:
    """Connect what Sphinx asks of this file."""
    app.connect("autodoc-skip-member", ours)
