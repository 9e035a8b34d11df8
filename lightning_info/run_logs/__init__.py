"""What runs have left in their logs, in one form wherever it was read: by TensorBoard, from event files, from CSV."""
