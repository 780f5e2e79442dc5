"""The models and LoadGen. Knows nothing of the scheduler."""
