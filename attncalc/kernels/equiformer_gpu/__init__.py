"""Equiformer on a GPU: energy, forces, strain in Triton kernels with the gradient written out."""
