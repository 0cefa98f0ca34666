"""Sampling: molecules made of fragments, their structures, and oracles that label them."""
