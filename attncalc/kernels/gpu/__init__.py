"""Code that the engines for GPUs share."""
