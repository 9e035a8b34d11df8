"""How a copy of the user's module runs: snapshot, isolation, loss recognition, activations, reference samples."""
