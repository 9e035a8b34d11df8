"""Sphinx configuration: ``sphinx-build -n -W docs docs/_build``."""

import lightning_info

project = "lightning-info"
version = release = lightning_info.__version__
copyright = "The lightning-info developers, Apache-2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "lightning-info"
html_show_sphinx = False

maximum_signature_line_length = 100
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# names of other packages, which have no inventory without a network
nitpick_ignore_regex = [(r"py:.*", r"(?!lightning_info).*")]
# types in signatures that are no part of the public interface
nitpick_ignore = [
    ("py:class", f"lightning_info.{name}")
    for name in (
        "callbacks.member.Member",
        "figures.stability_paths.LossLandscape",
        "functional.optimised_posterior.Step",
        "quantities.quantity.Warn",
        "replica.predicted.Prediction",
        "replica.prediction.Predictor",
        "replica.snapshot.Audit",
        "replica.snapshot.T",
        "replica.workers.Workers",
        "twin.twin.Twin",
    )
]
