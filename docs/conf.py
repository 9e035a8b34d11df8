"""Sphinx configuration: ``sphinx-build docs docs/_build``."""

project = "lightning-info"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
exclude_patterns = ["_build"]
