"""Recorded functions that are repeated without Python: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

# runs of a function before it is recorded, in which libraries make their plans
WARM_UPS = 3

Function = Callable[[], None]
# turns a function that only writes into fixed tensors into another one that does the same
Recorder = Callable[[Function], Function]


class CudaGraph:
    """Function whose kernels are recorded once; a call launches all of them at once.

    Every call reads and writes the tensors of the recording. The function must not wait for the
    device, nor copy anything to or from it.

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
        # pass a stream: PyTorch's own is on the device of the first recording in the process; and
        # restore the current one: PyTorch does not, if recording fails
        with torch.cuda.stream(current), torch.cuda.graph(self._graph, stream=side):
            function()

    def __call__(self) -> None:
        self._graph.replay()
