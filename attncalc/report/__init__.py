"""Reports for a browser: each is one file, without scripts and external resources."""

from attncalc.report.evaluation import GENERATOR, Subject, evaluation, remarks

__all__ = ["GENERATOR", "Subject", "evaluation", "remarks"]
