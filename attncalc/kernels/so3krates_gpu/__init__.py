"""So3krates on a GPU: energy, forces and strain in fused Triton kernels, gradient written out."""
