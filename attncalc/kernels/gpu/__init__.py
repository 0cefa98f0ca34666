"""What the engines for GPUs share."""
