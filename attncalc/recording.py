"""Functions that are done again and again without asking Python: a CUDA graph, and a stand-in."""

from __future__ import annotations

from collections.abc import Callable

import torch

# before it is recorded a function has run so often, for libraries make their plans meanwhile
WARM_UPS = 3

Function = Callable[[], None]
# makes of a function that only writes into fixed tensors another one that does the same
Recorder = Callable[[Function], Function]


class CudaGraph:
    """A function whose kernels are recorded once; a call launches all of them at once.

    What the function reads and writes stays where it is. It must not wait for the device, nor copy
    anything to or from it.

    Args:
        function: runs a few times before it is recorded.
    """

    def __init__(self, function: Function) -> None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function()
        current.wait_stream(side)
        self._function = function  # its tensors must live as long as the graph
        self._graph = torch.cuda.CUDAGraph()
        # PyTorch's own stream for this is on the device that something was first recorded on; and
        # where recording fails, PyTorch leaves its stream the current one
        with torch.cuda.stream(current), torch.cuda.graph(self._graph, stream=side):
            function()

    def __call__(self) -> None:
        self._graph.replay()


class Again:
    """Calls the function: what a `CudaGraph` does, anywhere, slowly.

    Args:
        function: runs as often beforehand as for a `CudaGraph`.
    """

    def __init__(self, function: Function) -> None:
        for _ in range(WARM_UPS):
            function()
        self._function = function

    def __call__(self) -> None:
        self._function()
