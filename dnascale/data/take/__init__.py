"""What is taken from the records that were read: regions, spliced features, and what is left after cleaning."""

from dnascale.data.take.cleaning import CleanOptions, clean
from dnascale.data.take.taker import TakeOptions, Taker

__all__ = ["CleanOptions", "TakeOptions", "Taker", "clean"]
