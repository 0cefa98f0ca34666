"""Public names say what they do, what they take and what they refuse."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

import attncalc
from attncalc import data, md, train

PUBLIC_MODULES = (attncalc, data, md, train)
# up to so many parameters a sentence does
FEW = 2
REFUSALS = ("ValueError", "TypeError")

PACKAGE = Path(attncalc.__file__).parent
# folders and modules in which a docstring begins with its noun or verb, so that it reads alone
READS_ALONE = (
    *(
        "basis",
        "cli",
        "convert",
        "data",
        "distill",
        "files",
        "kernels",
        "md",
        "neighbors",
        "nn",
        "physics",
    ),
    *("calibrate.py", "novelty", "plots", "report", "sampling", "train", "calculator.py"),
    *("checks.py", "compiled.py", "describe.py"),
    *("evaluator.py", "fast.py", "graph.py", "model_file.py", "model_header.py", "names.py"),
    *("ops.py", "potential.py", "recompute.py", "sample_structures.py", "signals.py", "system.py"),
    *("text.py",),
)
# beginnings of half a sentence, the rest of which is the name
HALF = ("As", "By", "From", "How", "Of", "On", "What", "Where", "Whether", "Which", "Without")


def public_things(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions, classes, and what a class of ours lets one call or read; constants have no doc."""
    for name in module.__all__:
        thing = getattr(module, name)
        if not callable(thing):
            continue
        yield f"{module.__name__}.{name}", thing
        for owner in thing.__mro__ if inspect.isclass(thing) else ():
            if owner.__module__.partition(".")[0] != "attncalc":
                continue
            for key, member in vars(owner).items():
                if not key.startswith("_") and function_of(member) is not None:
                    yield f"{module.__name__}.{name}.{key}", member


def function_of(member: object) -> object:
    """The function behind a method or property; None for anything else."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    return member if inspect.isfunction(member) else None


def complaints(thing: object) -> list[str]:
    """What a docstring leaves open."""
    doc = own_doc(thing)
    if not doc:
        return ["no docstring"]
    wrong = []
    names = parameters(thing)
    if len(names) > FEW:
        told = documented(doc, "Args") | documented(doc, "Attributes")
        wrong += [f"parameter {name!r} is not documented" for name in names if name not in told]
    told = documented(doc, "Raises")
    wrong += [f"{kind} is not under Raises" for kind in refusals(thing) if kind not in told]
    return wrong


def own_doc(thing: object) -> str:
    """Cleaned; a dataclass without docstring gets its signature for one, which does not count."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    return "" if inspect.isclass(thing) and doc.startswith(f"{thing.__name__}(") else doc


def parameters(thing: object) -> list[str]:
    if isinstance(thing, property):
        return []
    bound = thing.__func__ if isinstance(thing, staticmethod | classmethod) else thing
    return [name for name in inspect.signature(bound).parameters if name not in ("self", "cls")]


def documented(doc: str, section: str) -> set[str]:
    """Names before the colons of a section, several of them between commas."""
    body = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", doc, flags=re.MULTILINE)
    entries = re.findall(r"^    (\w[\w, ]*):", body[1] if body else "", flags=re.MULTILINE)
    return {name.strip() for entry in entries for name in entry.split(",")}


def refusals(thing: object) -> list[str]:
    """Exceptions of REFUSALS that the source itself raises; those of a class on construction."""
    body = function_of(thing)
    if inspect.isclass(thing):  # the __init__ of a dataclass has no source
        body = vars(thing).get("__post_init__" if is_dataclass(thing) else "__init__")
    if body is None:
        return []
    raised = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(body))))):
        if isinstance(node, ast.Raise):
            raised.add(getattr(getattr(node.exc, "func", node.exc), "id", ""))
    return [kind for kind in REFUSALS if kind in raised]


THINGS = {name: thing for module in PUBLIC_MODULES for name, thing in public_things(module)}


@pytest.mark.parametrize("name", THINGS)
def test_docstring_tells_parameters_and_refusals(name):
    assert complaints(THINGS[name]) == []


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module and of all classes and functions in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "name", "the module"), ast.get_docstring(node) or ""


def half_sentences(source: str) -> list[str]:
    """Names whose docstrings cannot be read alone."""
    return [name for name, doc in docstrings(source) if re.match(rf"({'|'.join(HALF)})\b", doc)]


@pytest.mark.parametrize("name", READS_ALONE)
def test_docstrings_can_be_read_alone(name):
    files = sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / name]
    found = {file.name: half_sentences(file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("first", HALF)
def test_half_a_sentence_is_noticed(first):
    assert half_sentences(f'"""{first} it is."""') == ["the module"]
    assert half_sentences(f'def f():\n    """{first} it is."""') == ["f"]
    assert half_sentences(f'"""{first}ten."""\ndef f():\n    """Return it."""') == []


def silent(a):
    pass


def one_parameter_short(a, b, *, c):
    """Adds.

    Args:
        a: first.
        c, d: others.
    """


def two_parameters(a, b):
    """Adds a and b."""


def refuses_silently(a):
    """Adds.

    Raises:
        ValueError: a is odd.
    """
    if a > 1:
        raise ValueError("odd")
    raise TypeError


@torch.random.fork_rng(devices=[])
def wrapped(a):
    """Adds."""
    raise ValueError(a)


def raises_something_else(a):
    """Adds."""
    raise FileNotFoundError(a)


@dataclass
class BareFields:
    a: int


@dataclass
class Fields:
    """Three numbers.

    Attributes:
        a, b: the first two.
            c: indented further, so not an entry.
    """

    a: int
    b: int
    c: int

    def __post_init__(self):
        raise ValueError("always")

    @property
    def total(self):
        return self.a + self.b + self.c

    @classmethod
    def make(cls, a, b, c):
        """Makes.

        Args:
            a: first.
            b: second.
            c: third.
        """
        raise TypeError(a, b, c)


class Plain:
    """Takes a number."""

    def __init__(self, a):
        raise TypeError(a)


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (silent, ["no docstring"]),
        (BareFields, ["no docstring"]),
        (Fields.__dict__["total"], ["no docstring"]),
        (one_parameter_short, ["parameter 'b' is not documented"]),
        (two_parameters, []),
        (refuses_silently, ["TypeError is not under Raises"]),
        (wrapped, ["ValueError is not under Raises"]),
        (raises_something_else, []),
        (Fields, ["parameter 'c' is not documented", "ValueError is not under Raises"]),
        (Fields.__dict__["make"], ["TypeError is not under Raises"]),
        (Plain, ["TypeError is not under Raises"]),
    ],
)
def test_a_poor_docstring_is_noticed(thing, expected):
    assert complaints(thing) == expected


def test_methods_and_properties_are_among_the_public_things():
    assert {
        "attncalc.evaluate",
        "attncalc.AttnCalculator.calculate_many",
        "attncalc.AttnCalculator.n_rebuilds",
        "attncalc.System.from_ase",
        "attncalc.md.Settings",
        "attncalc.train.Recipe.from_yaml",
    } <= THINGS.keys()
    assert not [name for name in THINGS if name.rpartition(".")[2].startswith("_")]
    assert "attncalc.Potential.state_dict" not in THINGS  # torch's
