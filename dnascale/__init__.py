"""dnascale: train DNA language models, from one laptop to a cluster, with the same commands."""

__version__ = "0.1.0"
