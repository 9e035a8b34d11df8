"""The information plane: estimates, their artefacts, and verdicts on compression."""
