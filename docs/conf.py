"""Sphinx: the pages are Markdown (MyST)."""

import sys
from pathlib import Path

from haltere import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "haltere"
copyright = "haltere's authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "state_tables"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = "haltere"
html_theme_options = {"show_prev_next": False, "navbar_align": "left"}
html_show_sourcelink = False
nitpicky = False
