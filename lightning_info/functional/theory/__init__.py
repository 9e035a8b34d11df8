"""Results of the papers that no callback computes."""
