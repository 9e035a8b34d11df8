"""Looking at the user's module without touching it: replica, isolation, and what it predicts for a batch."""
