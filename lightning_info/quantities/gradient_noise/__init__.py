"""The noise of the gradients of training."""
