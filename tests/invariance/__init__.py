"""Training must not notice the callbacks: the configurations, and how they are judged."""
