"""`CudaGraph` calls CUDA in the order that PyTorch asks for; what CUDA does, only a GPU shows."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from attncalc.md.replay import WARM_UPS, CudaGraph


def test_warms_up_on_another_stream_then_captures_then_replays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextmanager
    def on(what: Stream | Graph, stream: Stream | None = None):
        name = what.name if isinstance(what, Stream) else f"capture on {stream.name}"
        events.append(f"begin {name}")
        yield
        events.append(f"end {name}")

    main = Stream("main")
    for name, value in {
        "Stream": Stream,
        "current_stream": lambda: main,
        "stream": on,
        "graph": on,
        "CUDAGraph": Graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    replayed = CudaGraph(lambda: events.append("step"))
    assert events == [
        *("side waits for main", "begin side", *["step"] * WARM_UPS, "end side"),
        *("main waits for side", "begin main", "begin capture on side", "step"),
        *("end capture on side", "end main"),
    ]
    events.clear()
    replayed()
    replayed()
    assert events == ["replay", "replay"]
