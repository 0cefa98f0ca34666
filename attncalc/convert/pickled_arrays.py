"""Reader of pickled trees of NumPy arrays, which executes nothing that a pickle asks for.

Parameters of JAX programs are stored as pickles of nested dictionaries with arrays as leaves. This
module interprets the few instructions that such a file needs. It accepts three names, NumPy's
`_reconstruct`, `ndarray` and `dtype`, calls none of them, and makes arrays itself from the bytes in
the file. Everything else is refused, with its name in the message.
"""

from __future__ import annotations

import io
import math
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attncalc.convert.inputs import decoding
from attncalc.files.reading import read_whole

# far above those of a network's parameters
MOST_INSTRUCTIONS = 1_000_000
MOST_ARRAYS = 100_000
DEEPEST = 32  # levels of nested dictionaries
MOST_AXES = 32

_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINFLOAT", "LONG1"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(str):
    """Name that a pickle refers to."""


class _Kind:
    """Dtype under construction, as a pickle describes it."""

    def __init__(self, name: Any) -> None:
        if name not in _KINDS:
            raise ValueError(f"an array of {name!r}, not of plain numbers")
        self.name, self.order = name, "<"


class _Array:
    """Array under construction, as a pickle describes it."""

    def __init__(self) -> None:
        self.values: NDArray[Any] | None = None


_MARK = object()


def read_pickled_arrays(path: Path, most: int) -> dict[str, NDArray[Any]]:
    """Read the arrays of a pickle, by their names joined by "/".

    Args:
        path: the file.
        most: largest size of the file, bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything but nested dictionaries of arrays of numbers, or is damaged.
    """
    found: dict[str, NDArray[Any]] = {}
    with decoding(path, "a readable pickle"):
        _flatten(_run(read_whole(path, most)), "", 0, found)
    return found


def _flatten(tree: Any, name: str, depth: int, found: dict[str, NDArray[Any]]) -> None:
    if isinstance(tree, dict) and depth <= DEEPEST:
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ValueError(f"a name is {type(key).__name__}, no text")
            _flatten(value, f"{name}/{key}" if name else key, depth + 1, found)
        return
    if not isinstance(tree, _Array) or tree.values is None:
        what = "too deep" if isinstance(tree, dict) else "no array of numbers"
        raise ValueError(f"{name or 'the whole'!r} is {what}")
    if len(found) >= MOST_ARRAYS:
        raise ValueError(f"more than {MOST_ARRAYS} arrays")
    found[name] = tree.values


def _run(content: bytes) -> Any:
    """Return the value that the instructions of a pickle build."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for n, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if n >= MOST_INSTRUCTIONS:
                raise ValueError(f"more than {MOST_INSTRUCTIONS} instructions")
            if operation.name == "STOP":
                return stack.pop()
            _step(operation.name, argument, stack, memo)
    except ValueError:
        raise
    # raised for a file that is not a pickle, or is cut off
    except (LookupError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"damaged: {error}") from None
    raise ValueError("cut off")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in ("PROTO", "FRAME"):
        return
    if name in _VALUES:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(tuple(_after_mark(stack)))
    elif name in _TUPLES:
        size = _TUPLES[name]
        items = [stack.pop() for _ in range(size)]
        stack.append(tuple(reversed(items)))
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_named(module, attribute))
    elif name == "GLOBAL":
        stack.append(_named(*str(argument).split(" ", 1)))
    elif name == "REDUCE":
        arguments, called = stack.pop(), stack.pop()
        stack.append(_made(called, arguments))
    elif name == "BUILD":
        state = stack.pop()
        _complete(stack[-1], state)
    elif name in ("SETITEM", "SETITEMS"):
        items = _after_mark(stack) if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    else:
        raise ValueError(f"instruction {name} has no place in a tree of arrays")


def _after_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _named(module: Any, attribute: Any) -> _Name:
    if (module, attribute) not in _NAMES:
        raise ValueError(f"it asks for {module}.{attribute}, which is refused; nothing was run")
    return _Name(attribute)


def _made(called: Any, arguments: Any) -> _Array | _Kind:
    if called == "_reconstruct" and arguments[0] == "ndarray" and arguments[1] == (0,):
        return _Array()
    if called == "dtype":
        return _Kind(arguments[0])
    raise ValueError("it calls something else than arrays are made of")


def _complete(begun: Any, state: Any) -> None:
    if isinstance(begun, _Kind):
        begun.order = state[1]
        if begun.order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {begun.order!r} is none")
        return
    if not isinstance(begun, _Array):
        raise ValueError("it changes something else than an array")
    _, shape, kind, by_columns, content = state
    if not isinstance(kind, _Kind) or not isinstance(content, bytes):
        raise ValueError("an array holds objects, not numbers")
    if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the impossible shape {shape!r:.80}")
    dtype = np.dtype(kind.order + kind.name)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {list(shape)} has {len(content)} bytes")
    flat = np.frombuffer(content, dtype)
    # in the byte order of this machine, because PyTorch supports no other
    begun.values = flat.reshape(shape, order="F" if by_columns else "C").astype(
        dtype.newbyteorder("=")
    )
