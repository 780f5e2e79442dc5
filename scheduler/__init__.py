"""hetero-mig: how a workload performs on its slice of a GPU while others run beside it."""

__version__ = "0.1.0"
