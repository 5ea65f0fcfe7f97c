"""How the pages are built, by `python -m sphinx -q -W --keep-going -n -c docs . build/docs`.

The source is the root of the repository, so that a link is the same file on the site as in the checkout, and the
notebooks are taken from where they are. Nothing is fetched and no notebook is run.
"""

import pyro_zilognormal

project = "pyro_zilognormal"
author = "The pyro_zilognormal authors"
copyright = author
version = release = pyro_zilognormal.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "myst_nb"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/api/*.md",
    "tutorials/*.ipynb",
    "tutorials/*.md",
    "benchmarks/*.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md",
    "SECURITY.md",
]

# Types of ours that nobody has to name.
nitpick_ignore = [
    ("py:class", "pyro_zilognormal.models.hurdle.components.Block"),
    ("py:class", "pyro_zilognormal.models.hurdle.sinh_arcsinh.PathDerivative"),
    ("py:class", "pyro_zilognormal.singlecell.design.depth.Depth"),
    ("py:class", "pyro_zilognormal.singlecell.files.scale.Cleaner"),
    ("py:class", "pyro_zilognormal.svi.data.FullData"),
    ("py:class", "pyro_zilognormal.svi.data.Source"),
]

html_theme = "furo"
html_title = f"pyro_zilognormal {version}"
html_extra_path = ["site"]  # a page at the root of the site that leads to docs/index.html
html_show_copyright = False

# Notebooks and pages in Markdown.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

# Docstrings in Google style. A name in single backquotes is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# What other packages document is not looked up: that would take the network. Every name of ours must resolve.
nitpick_ignore_regex = [("py:.*", r"(torch|pyro|numpy|pandas|anndata|matplotlib|scipy|collections|os)\..*|Axes")]
