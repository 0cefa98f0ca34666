"""Substitute for CUDA graphs, for tests without a GPU."""

from attncalc.recording import WARM_UPS, Function


class Again:
    """Substitute for `CudaGraph` on any device, slow: it calls the function.

    Args:
        function: runs a few times at first, as for `CudaGraph`.
    """

    def __init__(self, function: Function) -> None:
        for _ in range(WARM_UPS):
            function()
        self._function = function

    def __call__(self) -> None:
        self._function()
