"""A drill: kills, full disks, power cuts, hostile files, links, threads, and what is left then.

Every module of this folder but `trial` and `__main__` is a part of it. `make drill` runs all of
them and writes docs/drill.md; tests/test_drill.py runs a few trials of each.
"""
