"""Dependencies of the package, read from its imports: a file imports from lower layers only."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "attncalc"

# a module is a file or a folder directly in attncalc/; it may import from itself and from modules
# of lower layers
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            *("system", "ops", "sample_structures", "compiled", "files", "names"),
            *("late_import", "options", "pickling", "recompute", "signals", "recording"),
            "text",
        }
    ),
    frozenset({"neighbors", "graph", "basis"}),
    frozenset({"nn", "physics", "kernels", "novelty", "bonds"}),
    frozenset({"potential", "result", "structures"}),
    frozenset(
        {
            *("model_file", "model_header", "fast", "evaluator", "checks", "data", "plots"),
            *("convert", "describe", "hessian", "calibrate", "domain", "heat_flux"),
        }
    ),
    frozenset({"calculator", "md", "train", "sampling"}),
    frozenset({"plugins", "distill"}),
    frozenset({"cli", "report"}),
)
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}

# steps inside one layer, each from the first module to the second and never back:
#   layer 0   system ──► ops
#             files ──► text, signals   what is wrong with a file is said in one line
#   layer 1   neighbors ──► graph        a neighbour list is made into a Graph
#   layer 3   structures ──► potential ──► result   numbers, how they are made, and for whom
#   layer 4   model_file ──► model_header   bytes and JSON are checked, then something is built
#             evaluator ──► fast         what runs is compiled when it is first needed
#             heat_flux ──► domain       images of a cell are ghosts like any others
#   layer 7   cli ──► report             `attncalc eval` writes the report
STEPS = frozenset(
    {
        *(("system", "ops"), ("files", "text"), ("files", "signals")),
        *(("neighbors", "graph"), ("model_file", "model_header"), ("cli", "report")),
        *(("evaluator", "fast"), ("potential", "result"), ("heat_flux", "domain")),
        *(("structures", "potential"), ("structures", "result")),
    }
)

# these hand the public names on and hold nothing themselves
EXEMPT = frozenset({"__init__", "__main__"})

ROOT = "attncalc itself"

# functions whose first argument is the name of a module
IMPORTING = ("import_module", "__import__", "cpu_loops", "gpu_kernels")


def module_of(file: Path, package: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def imported_names(file: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import in a file, those inside functions included."""
    home = [package.name, *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            # `from attncalc import nn` names a module only in its second half
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:  # import_module("attncalc.md")
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if name in IMPORTING and isinstance(argument, ast.Constant):
                yield node.lineno, str(argument.value)


def imported_modules(
    file: Path, package: Path, modules: frozenset[str]
) -> Iterator[tuple[int, str]]:
    for line, name in imported_names(file, package):
        top, _, rest = name.partition(".")
        if top == package.name:
            module = rest.partition(".")[0]
            yield line, module if module in modules else ROOT


def wrong_imports(package: Path) -> list[str]:
    """One line for every import that is not allowed, and for every module without a layer."""
    wrong = []
    files = sorted(package.rglob("*.py"))
    modules = frozenset(module_of(file, package) for file in files) | LAYER_OF.keys()
    for file in files:
        here = module_of(file, package)
        place = file.relative_to(package.parent).as_posix()
        if here in EXEMPT:
            continue
        if here not in LAYER_OF:
            wrong.append(f"{place}: '{here}' has no layer; give it one in LAYERS")
            continue
        for line, there in imported_modules(file, package, modules):
            if there == ROOT:
                wrong.append(
                    f"{place}:{line}: imports from attncalc itself, which is above every layer;"
                    " name the file it comes from"
                )
            elif there in LAYER_OF and not is_allowed(here, there):
                wrong.append(
                    f"{place}:{line}: {here} (layer {LAYER_OF[here]}) imports "
                    f"{there} (layer {LAYER_OF[there]})"
                )
    return wrong


def is_allowed(here: str, there: str) -> bool:
    return here == there or LAYER_OF[there] < LAYER_OF[here] or (here, there) in STEPS


def test_imports_point_down():
    assert list(PACKAGE.rglob("*.py")), f"no source found in {PACKAGE}"
    wrong = wrong_imports(PACKAGE)
    assert not wrong, "\n".join(wrong)


def test_every_step_stays_in_its_layer_and_never_turns_back():
    for here, there in STEPS:
        assert LAYER_OF[here] == LAYER_OF[there]
        assert (there, here) not in STEPS


@pytest.mark.parametrize(
    ("place", "source", "complaint"),
    [
        ("ops.py", "from attncalc.graph import Graph", "ops (layer 0) imports graph (layer 1)"),
        ("ops.py", "import attncalc.md.run as r", "ops (layer 0) imports md (layer 5)"),
        ("ops.py", "def f():\n    from .nn import norm", "ops (layer 0) imports nn (layer 2)"),
        ("nn/norm.py", "from ..potential import Potential", "nn (layer 2) imports potential"),
        ("nn/norm.py", "from .. import train", "nn (layer 2) imports train (layer 5)"),
        ("nn/norm.py", "from attncalc import physics", "nn (layer 2) imports physics (layer 2)"),
        ("graph.py", "from attncalc import neighbors", "graph (layer 1) imports neighbors"),
        ("fast.py", "importlib.import_module('attncalc.cli')", "fast (layer 4) imports cli"),
        ("cli/md.py", "from attncalc import load", "imports from attncalc itself"),
        ("cli/md.py", "import attncalc", "imports from attncalc itself"),
        ("utils.py", "x = 1", "'utils' has no layer"),
    ],
)
def test_a_wrong_import_is_caught(tmp_path, place, source, complaint):
    write(tmp_path / "attncalc" / place, source)
    (message,) = wrong_imports(tmp_path / "attncalc")
    assert f"attncalc/{place}" in message
    assert complaint in message


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("graph.py", "from attncalc.system import System"),
        ("neighbors/verlet.py", "from attncalc.graph import Graph\nfrom . import matscipy"),
        ("neighbors/verlet.py", "import matscipy.neighbours\nfrom graph import Graph"),
        ("nn/so3krates.py", "from .norm import LayerNorm\nfrom ..basis.so3 import product"),
        ("md/__init__.py", "from attncalc.md.run import run\nfrom .langevin import Langevin"),
        ("cli/md.py", "from attncalc import md, report\nfrom attncalc.model_file import load"),
        ("__init__.py", "from attncalc.calculator import AttnCalculator"),
    ],
)
def test_a_right_import_passes(tmp_path, place, source):
    write(tmp_path / "attncalc" / place, source)
    assert wrong_imports(tmp_path / "attncalc") == []


def write(file: Path, source: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")


# what a process shares: read after torch is there, and again after attncalc is
IMPORT_AND_COMPARE = """
import json, os, random, sys
import numpy, torch, ase, e3nn

def world():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": repr(numpy.random.get_state()),
        "python random state": repr(random.getstate()),
        "environment variables": dict(os.environ),
        "working directory": os.getcwd(),
        "recursion limit": sys.getrecursionlimit(),
        "e3nn defaults": repr(e3nn.get_optimization_defaults()),
        "files": sorted(os.path.join(folder, name)
                        for folder, folders, names in os.walk(sys.argv[1])
                        for name in [*folders, *names]),
    }

before = world()
import attncalc
after = world()
changed = [name for name in before if before[name] != after[name]]
optional = [name for name in ("lightning", "nvalchemiops", "tblite", "pytest", "matplotlib")
            if name in sys.modules]
print(json.dumps({"changed": changed, "optional": optional, "file": attncalc.__path__[0]}))
"""


@pytest.fixture(scope="module")
def what_import_does(tmp_path_factory) -> dict:
    sandbox = tmp_path_factory.mktemp("import")
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
        **dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(sandbox)),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_COMPARE, str(sandbox)],
        cwd=sandbox,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, f"the import printed something: {done.stdout}"
    return json.loads(done.stdout)


def test_import_changes_nothing_global(what_import_does):
    assert what_import_does["changed"] == []
    assert Path(what_import_does["file"]) == PACKAGE


def test_import_loads_no_optional_package_and_no_pictures(what_import_does):
    assert what_import_does["optional"] == []
