"""Figures to move in, as the plain dictionaries that plotly draws: for the tab in TensorBoard and for reports."""
