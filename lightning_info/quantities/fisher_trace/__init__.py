"""The trace of the Fisher information."""
