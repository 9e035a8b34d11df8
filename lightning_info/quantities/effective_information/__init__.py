"""The information in the activations under weight noise."""
