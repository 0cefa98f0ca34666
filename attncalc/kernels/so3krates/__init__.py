"""So3krates on a CPU: energy, forces and strain in compiled loops with the gradient written out."""
