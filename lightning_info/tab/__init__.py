"""A tab in TensorBoard that draws what the callbacks have logged."""
