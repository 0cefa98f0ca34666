"""Equiformer on a CPU: energy, forces, strain in compiled loops with the gradient written out."""
