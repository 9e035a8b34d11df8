"""Output of a measurement: scalars, figures, histograms, the tables at the end of fit."""
