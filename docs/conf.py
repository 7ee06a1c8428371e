"""The site: pages in markdown, tutorials from text notebooks, the reference from docstrings."""

import os
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

project = "pyro_fcr"
author = "The pyro_fcr authors"
copyright = author
version = release = installed("pyro_fcr")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
# The source folder is the repository, so that every page's links work there and here alike.
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "ARCHITECTURE.md",
    "docs/*.md",
    "docs/reference/*.md",
    "tutorials/*.py",
    "benchmarks/*.md",
]

# ``make docs`` runs the tutorials; the quick build that every test run makes shows their text.
nb_execution_mode = os.environ.get("PYRO_FCR_DOCS_EXECUTION", "off")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # progress bars that a page cannot draw
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

napoleon_google_docstring = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = True

html_theme = "furo"
html_title = "pyro_fcr"
# MathJax whole in one file, fonts as outlines: formulas are drawn without a network.
mathjax = find_spec("sphinx-mathjax-offline")
html_static_path = ["static", str(Path(mathjax.origin).parent / "static/mathjax/tex-svg.js")]
mathjax_path = "tex-svg.js"
html_css_files = ["site.css"]
