"""Functions of edge vectors shared by networks and pair terms."""
