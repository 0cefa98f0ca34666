"""Faster evaluation of single pieces; each names the plain function that it must equal."""
