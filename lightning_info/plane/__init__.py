"""The information plane of a run: estimators by name, labels, kept activations, artefacts, verdicts. No Lightning."""
