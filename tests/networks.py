"""The smallest network that has everything, for tests of what is around networks."""

from typing import Any

from attncalc.nn.so3krates import So3kratesConfig


def tiny_so3krates(cutoff: float, **changes: Any) -> So3kratesConfig:
    """One layer of eight features, unless some of that is changed."""
    least = {
        "avg_num_neighbors": 8.0,
        "num_features": 8,
        "num_heads": 2,
        "degrees": (1, 2),
        "num_layers": 1,
        "num_basis": 6,
        "head_features": 8,
    }
    return So3kratesConfig(cutoff=cutoff, **(least | changes))
