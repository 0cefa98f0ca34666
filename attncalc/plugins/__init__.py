"""Doors to other programs: thin, optional, pointing inward."""
