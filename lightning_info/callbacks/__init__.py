"""One callback a file; ``base`` is the only place that knows the Trainer's hooks."""
