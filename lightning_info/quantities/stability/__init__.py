"""Distance between two trainings that differ in one sample."""
