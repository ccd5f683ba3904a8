"""Scores of variants: how much less likely a model finds the other allele."""
