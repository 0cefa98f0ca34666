"""Reports to look at in a browser: one file each, that needs no network and no scripts."""

from attncalc.report.evaluation import GENERATOR, Subject, evaluation, remarks

__all__ = ["GENERATOR", "Subject", "evaluation", "remarks"]
