"""Training on your own data: from a recipe to a model file with its card."""

try:
    from attncalc.train.fit import Training, fit, read_run, run
    from attncalc.train.processes import connect
    from attncalc.train.recipe import Recipe
except ImportError as error:
    raise ImportError(f'{error}; training needs: pip install "attncalc[train]"') from None

__all__ = ["Recipe", "Training", "connect", "fit", "read_run", "run"]
