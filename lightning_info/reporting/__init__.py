"""What leaves a measurement: scalars, figures, the table at the end of fit."""
