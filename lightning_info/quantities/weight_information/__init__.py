"""The information in the weights."""
