"""Closed-form pair terms: a graph in, energies per atom out."""
