"""How far two trainings are apart that differ in one sample."""
