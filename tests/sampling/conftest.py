"""Sampling needs RDKit; where it is missing its tests are skipped."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("rdkit") is None:
    collect_ignore_glob = ["test_*.py"]
