"""What the papers prove and no callback computes."""
