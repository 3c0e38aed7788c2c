"""How Sphinx builds the site. `make docs` runs it with warnings as errors; the HTML lands in build/docs.

The pages are Markdown (MyST). The reference is generated from docstrings (`_ext/docstrings.py`), the gallery of tasks from
the package's tables (`_ext/gallery.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import m3dt_agent

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "m3dt-agent"
author = "the m3dt-agent authors"
project_copyright = author
version = release = m3dt_agent.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "docstrings", "gallery", "links"]

html_theme = "furo"
html_title = f"m3dt-agent {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # the same slugs as on GitHub, so that links to headings work on both
myst_links_external_new_tab = False
copybutton_exclude = ".linenos, .gp"
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"npt.ArrayLike": "ArrayLike", "ArrayLike": "ArrayLike"}  # numpy's takes five lines written out
autodoc_default_options = {"members": True, "undoc-members": True}
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"
nitpicky = False  # types of other packages, and type variables, have no page here
