"""Faster versions of parts of a potential; each names the plain version that it must equal."""
