"""Real processes that die in every way."""
