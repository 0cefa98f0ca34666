"""All kernels of the GPU engine become machine code here, without a GPU; and how many they are."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from contract import ELEMENTS, ethanol, randomise
from long_range_terms import TERMS
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton compiles the GPU's kernels: not here")

import triton

from attncalc import load
from attncalc.fast import SHORTEST, _lower_terms
from attncalc.graph import AtomOutputs, Graph, Graphs, Linearized
from attncalc.kernels.gpu import long_range, sums, zbl
from attncalc.kernels.gpu.launching import arguments_of, options_of
from attncalc.kernels.so3krates_gpu import engine as module
from attncalc.kernels.so3krates_gpu.engine import Engine, can_run
from attncalc.neighbors import VerletList
from attncalc.nn.network import CompiledNetwork
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.ops import with_modules
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential, evaluate, evaluate_without_waiting
from attncalc.system import System

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in this process"
    ),
]

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
# kernels that one evaluation may launch, Triton's and PyTorch's, without the sums at its end, which
# a loop does here: each costs about 2 µs at least
MOST_LAUNCHES = 33
# of one layer of a So3krates, from its features to those before
REVERSE = ("messages_gradient", "filters_gradient", "ev_gradient", "update_gradient")
MOST_OF_REPULSION, MOST_OF_LONGER_RANGE = 9, 2


def potential(*, repels: bool = False, reaches: bool = False, **options) -> Potential:
    """Of the shipped models' size; with nuclear repulsion, electrostatics and dispersion."""
    if reaches:
        options |= {"predict_charges": True, "predict_hirshfeld_ratios": True}
    config = So3kratesConfig(cutoff=5.0, avg_num_neighbors=10.0, **options)
    network = So3krates(config, len(ELEMENTS))
    randomise(network)
    terms = [ZBLRepulsion(ZBLConfig(cutoff=5.0), ELEMENTS)] if repels else []
    terms += TERMS["both"](12.0) if reaches else []
    return Potential(network, ELEMENTS, pair_terms=terms).requires_grad_(False)


def engine_of(plain: Potential) -> Engine:
    return Engine(plain.network, SHORTEST)


def with_engine(plain: Potential, engine: Any) -> Potential:
    terms = torch.nn.ModuleList(_lower_terms(plain.pair_terms, "cuda"))
    return with_modules(plain, network=CompiledNetwork(plain.network, engine), pair_terms=terms)


def padded_graph(plain: Potential, atoms: Atoms, cutoff: float | None = None) -> Graph:
    end = plain.cutoff if cutoff is None else cutoff
    options = {"cutoff": end, "skin": 1.0, "species": plain.species, "capacity": 128}
    return VerletList.create(**options).update(System.from_ase(atoms))[1]


def padded_graphs(plain: Potential, atoms: Atoms) -> Graphs:
    long = plain.long_range
    return Graphs(
        padded_graph(plain, atoms), None if long is None else padded_graph(plain, atoms, long)
    )


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Kernels that an engine would launch, with their arguments; none is run."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def note(kernel: Any, grid: tuple[int, ...], *known: dict[str, Any], **more: Any) -> None:
        assert all(n > 0 for n in grid)
        seen.append((kernel, arguments_of(kernel, more, *known)))

    for one in (module, zbl, long_range, sums):
        monkeypatch.setattr(one, "launch", note)
    return seen


class CountOperations(TorchDispatchMode):
    """Counts PyTorch's operations that do something on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in {"empty", "slice", "detach", "view", "t", "alias"}:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def launches(plain: Potential, launched: list) -> list[str]:
    """Kernels of one evaluation, and operations of PyTorch, by name."""
    fast, graph = with_engine(plain, engine_of(plain)), padded_graphs(plain, ethanol())
    launched.clear()
    with CountOperations() as operations:
        evaluate_without_waiting(fast, graph)
    # nothing that reads a number back
    assert not {"_local_scalar_dense", "nonzero", "equal", "item"} & set(operations.names)
    # a cumulative sum is three kernels: of a cast, of blocks, of what they add up to
    sums = 2 * operations.names.count("cumsum") * ["cumsum"]
    return [*(kernel.fn.__name__ for kernel, _ in launched), *operations.names, *sums]


def test_launches_of_repulsion(launched: list) -> None:
    plain, repels = (launches(potential(repels=given), launched) for given in (False, True))
    assert {"repel", "sum_edges"} <= {*repels}
    assert len(repels) - len(plain) <= MOST_OF_REPULSION, repels


def test_launches_of_longer_range(launched: list) -> None:
    reaches = potential(reaches=True)
    alone = with_modules(reaches, pair_terms=torch.nn.ModuleList())
    alone, reaches = (launches(one, launched) for one in (alone, reaches))
    assert "interact" in reaches
    assert len(reaches) - len(alone) <= MOST_OF_LONGER_RANGE, reaches


def test_launches_of_one_evaluation(launched: list) -> None:
    plain = load("so3krates-ethanol").requires_grad_(False)
    assert can_run(plain.network)
    names = launches(plain, launched)
    assert [kernel.fn.__name__ for kernel, _ in launched] == [
        "find_edges",
        *("first_messages", "update", "filters", "messages", "update", "filters", "messages"),
        "turn",
        *(*REVERSE, *REVERSE),
        *("first_messages_gradient", "gradient_by_vectors"),
    ]
    assert len(names) <= MOST_LAUNCHES, names


@pytest.mark.parametrize(
    "options",
    [
        {"qk_activation": "silu"},
        {"layer_norms": ("after_attention",)},
        {"mlp_after_attention": "projected"},
        {"mlp_after_exchange": "residual"},
        {"head_features": None},
        {"head_features": 24},
        {"head_activation": "identity"},
        {"degrees": (0, 1)},
        {"degrees": (1, 2, 3), "num_features": 96, "num_heads": 2},
        {"degrees": (1, 8)},
        {"num_features": 16, "num_heads": 2},
    ],
    ids=str,
)
def test_what_the_kernels_do_not_know(options: dict) -> None:
    assert not can_run(potential(**options).network)


def test_float64_is_not_for_the_kernels() -> None:
    plain = potential()
    assert can_run(plain.network)
    plain.set_dtype(torch.float64)
    assert not can_run(plain.network)


def test_energies_that_are_not_numbers_say_that_the_engine_could_not() -> None:
    class Without:
        defers = True

        def linearize(self, graph: Graph) -> Linearized:
            energies = torch.full((graph.n_atoms,), torch.nan, dtype=torch.float64)
            return Linearized(
                AtomOutputs(energies), lambda d: torch.zeros(graph.n_edges, 3).double()
            )

    plain = potential()
    graph, fast = padded_graph(plain, ethanol()), with_engine(plain, Without())
    assert evaluate_without_waiting(fast, graph).energy.isnan().all()
    assert torch.equal(evaluate(fast, graph).forces, evaluate(plain, graph).forces)


MODELS = {
    "shipped": lambda: load("so3krates-ethanol").requires_grad_(False),
    "electrons": lambda: potential(embed_charge=True, num_layers=1),
    "eight heads": lambda: potential(num_heads=8),
    "started variables": lambda: potential(ev_init_divisor=2.0, num_layers=1),
    "repulsion": lambda: potential(repels=True, num_layers=1),
    "longer range": lambda: potential(reaches=True, num_layers=1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "few", "size"),
    [
        (80, "few atoms", 4096),
        (80, "few atoms", 16384),
        (86, "few atoms", 8192),
        (90, "few atoms", 16384),
        (90, "many atoms", 16384),
    ],
)
def test_compiles_and_spills_no_register(
    launched: list, monkeypatch: pytest.MonkeyPatch, capability: int, few: str, size: int
) -> None:
    monkeypatch.setattr(module, "FEW", 2048 if few == "few atoms" else 0)
    for make in MODELS.values():
        plain = make()
        engine = engine_of(plain)
        engine.shape |= {"PRECISION": "tf32x3", "SIZE": size}  # as on such a device
        graphs = padded_graphs(plain, ethanol())
        evaluate_without_waiting(with_engine(plain, engine), graphs)
        sums.sum_over_edges(graphs.short, torch.zeros_like(graphs.short.vectors))
    variants = {}
    for kernel, arguments in launched:
        constants = {k: v for k, v in arguments.items() if _is_constant(kernel, k)}
        variants[kernel.fn.__name__, str(constants)] = (kernel, arguments)
    assert len({name for name, _ in variants}) == 19
    # all of them for 9.0; for others those that need most registers, or that depend on the size
    needed = {(80, 4096): "PRECISION", (80, 16384): "SIZE", (86, 8192): "SIZE"}
    needs = needed.get((capability, size), "PARTS" if few == "many atoms" else None)
    variants = {k: v for k, v in variants.items() if needs is None or needs in v[1]}
    used = {key: _resources(*value, capability) for key, value in variants.items()}
    for (name, _), (registers, stack, shared) in used.items():
        print(f"{name}: {registers} registers, {stack} bytes of stack, {shared} shared")
    # two words: some versions of Triton keep one there though registers are left
    assert not {key: stack for key, (_, stack, _) in used.items() if stack > 16}
    assert all(shared <= module.MEMORY[size] for _, _, shared in used.values())


def _is_constant(kernel: Any, name: str) -> bool:
    return "constexpr" in str(kernel.fn.__annotations__.get(name, ""))


def _resources(kernel: Any, arguments: dict[str, Any], capability: int) -> tuple[int, int, int]:
    """Registers of a thread, bytes of stack of a thread, bytes of shared memory of a program."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for k, (name, value) in enumerate(arguments.items()):
        if _is_constant(kernel, name):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(k,)] = [["tt.divisibility", 16]]
        else:
            assert isinstance(value, int)
            signature[name] = "i32"
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options=options_of(kernel),
    )
    # the compiler makes matrix products of some sums, and these lose digits
    products = re.findall(r"tt\.dot .*", compiled.asm["ttir"])
    assert all("inputPrecision = tf32x3" in product for product in products)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    code = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    code.write_bytes(compiled.asm["cubin"])
    said = subprocess.run(
        [str(tool), "-res-usage", str(code)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2]), compiled.metadata.shared


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
