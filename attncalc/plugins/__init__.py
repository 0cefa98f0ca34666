"""Plugins to other programs: thin and optional; the other modules do not import them."""
