"""What is measured, without a Trainer: a folder a quantity."""
