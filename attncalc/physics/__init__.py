"""Closed-form pair terms, which compute energies per atom from a graph."""
