"""Sampling: molecules built from fragments, their structures, and oracles that label them."""
