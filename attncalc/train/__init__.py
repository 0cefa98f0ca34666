"""Training on your own data: from a recipe to a model file with its card."""

from attncalc.train.fit import Training, fit, read_run, run
from attncalc.train.processes import connect
from attncalc.train.recipe import Recipe

__all__ = ["Recipe", "Training", "connect", "fit", "read_run", "run"]
