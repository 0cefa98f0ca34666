"""Times of repeated calls for one structure in one engine, in a process of its own.

An engine is attncalc or one of the other codes that `benchmarks/run.py` compares. This module runs
in the environment of each engine (`benchmarks/run.py --worker ENGINE`), and imports only that
engine. All engines evaluate energy + forces in float32. The other codes are told to omit the
stress. attncalc has no such option, because its forces and its strain derivative come from the same
gradients.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from platform import python_version
from types import ModuleType
from typing import Any

import numpy as np
import result_files
import torch
from ase import Atoms

# SO3LR's hyper-parameters without its long-range terms (JACS 147, 33723, 2025)
SO3LR = "So3krates of SO3LR's size: F 128, 4 heads, degrees 1-4, 3 layers, 4.5 Å, ZBL"
# hyper-parameters of MACE-OFF23(S), the smallest general MACE for organic molecules
# (JACS 147, 17598, 2025)
MACE_OFF23_S = "MACE of MACE-OFF23(S)'s size: 96x0e, l_max 3, correlation 3, 2 layers, 4.5 Å"
NEQUIP = "NequIP: 32 features, lmax 2, both parities, 4 layers, 4.5 Å; not compiled"
EQUIFORMER_OF_PAPER = "the published code of Equiformer, lmax 2, 3.5 M parameters"
ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17)

# channels of the published Equiformer for MD17 (ICLR 2023)
EQUIFORMER = {"l2": (128, 64, 32), "l3": (128, 64, 64, 32)}

Times = dict[str, list[float]]


def timed(
    budget: float,
    calls: dict[str, Callable[..., object]],
    device: str,
    fresh: Callable[[], tuple] = tuple,
) -> Times:
    """Time calls that take turns for `budget` seconds, after two rounds of warm-up; return ms.

    `fresh` makes the arguments of each call, which is not timed.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for call in [*calls.values()] * 2:
        call(*fresh())
    wait()
    times: Times = {name: [] for name in calls}
    start = time.perf_counter()
    while len(next(iter(times.values()))) < 3 or time.perf_counter() - start < budget:
        for name, call in calls.items():
            arguments = fresh()
            wait()
            before = time.perf_counter()
            call(*arguments)
            wait()
            times[name].append(1e3 * (time.perf_counter() - before))
    return times


def step_of_ase(atoms: Atoms, calculator: Any) -> Callable[[], object]:
    """Return a call like a step of ASE's dynamics: forces after small displacements.

    The atoms vibrate about their initial positions by 0.1 Å with a period of 40 steps, because
    random weights would not hold a structure together.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    rest = atoms.positions.copy()
    swing = np.random.default_rng(0).normal(scale=0.1, size=rest.shape)
    steps = itertools.count(1)

    def step() -> object:
        atoms.positions = rest + swing * np.sin(2 * np.pi * next(steps) / 40)
        return atoms.get_forces()

    return step


def copied(batch: dict) -> dict:
    """Return a copy of a batch: other codes make its positions require gradients."""
    return {
        name: value.clone() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def peak_mib(device: str) -> float:
    """Return the peak memory so far: of the process on the CPU, of its tensors on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return result_files.peak_mib()


def so3lr_sized() -> Any:
    """Return an `attncalc.Potential` with random weights; the time does not depend on them."""
    from attncalc import Potential
    from attncalc.nn.so3krates import So3krates, So3kratesConfig
    from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion

    torch.manual_seed(0)
    config = So3kratesConfig(
        cutoff=4.5, avg_num_neighbors=13.17, embed_charge=True, embed_spin=True
    )
    zbl = ZBLRepulsion(ZBLConfig(4.5), ELEMENTS)
    potential = Potential(So3krates(config, len(ELEMENTS)), ELEMENTS, pair_terms=[zbl])
    return potential.requires_grad_(False)


def equiformer(size: str, **options: str) -> Any:
    """Return an `attncalc.Potential` of published size with random weights."""
    from attncalc import Potential
    from attncalc.nn.equiformer import Equiformer, EquiformerConfig

    torch.manual_seed(0)
    config = EquiformerConfig(5.0, 15.58, channels=EQUIFORMER[size], **options)
    return Potential(Equiformer(config, len(ELEMENTS)), ELEMENTS).requires_grad_(False)


def attncalc(
    atoms: Atoms, device: str, budget: float, potential: Callable[[], Any] = so3lr_sized
) -> dict:
    """Time the network on a ready graph, and the other parts of a step of dynamics."""
    from attncalc import AttnCalculator, System, evaluate
    from attncalc.neighbors import VerletList

    threads = torch.get_num_threads()  # of PyTorch, and of the compiled step
    calculator = AttnCalculator(potential(), device=device, threads=threads)
    system = System.from_ase(atoms).to(device)
    evaluator = calculator.evaluator
    before, graph = evaluator.neighbors.update(system)
    evaluator.neighbors = before

    def forward() -> None:
        """Evaluate the energies and keep what the backward pass needs."""
        with torch.enable_grad():
            vectors = graph.vectors.detach().requires_grad_(True)
            evaluator.potential.energies(graph.with_vectors(vectors))

    calls: dict[str, Callable[..., object]] = {
        "network": lambda: evaluate(evaluator.potential, graph),
        "calculate": lambda: calculator.calculate(atoms, ["energy", "forces"], []),
        "list_reused": lambda: evaluator.neighbors.update(system),
    }
    if not hasattr(evaluator.potential.network, "engine"):  # only autograd has two passes
        calls["forward"] = forward
    times = timed(budget, calls, device)
    times |= timed(budget / 4, {"ase_step": step_of_ase(atoms, calculator)}, device)
    peak = peak_mib(device)  # before calls that dynamics does not need
    times |= timed(budget / 4, {"plain": lambda: evaluate(evaluator.plain, graph)}, device)
    fresh = VerletList.create(cutoff=before.cutoff, skin=before.skin, species=before.species)
    times |= timed(budget / 8, {"list_rebuilt": lambda: fresh.update(system)}, device)
    return {"edges": int(graph.edge_mask.sum()), "peak_MiB": peak, **times}


def so3lr_of_torch(device: str, long_range_cutoff: float | None = None) -> Any:
    """Return so3krates-torch's calculator of SO3LR; None switches off the long-range terms."""
    import so3krates_torch
    from so3krates_torch.calculator.so3 import TorchkratesCalculator

    weights = Path(so3krates_torch.__file__).parent / "pretrained" / "so3lr" / "so3lr.model"
    calculator = TorchkratesCalculator(
        model_paths=str(weights),
        device=device,
        default_dtype="float32",
        r_max_lr=long_range_cutoff,
        dispersion_energy_cutoff_lr_damping=2.0,
    )
    model = calculator.models[0]
    for name in ("electrostatic_energy_bool", "dispersion_energy_bool", "use_lr"):
        getattr(model, name)  # raise AttributeError rather than keep long-range terms unnoticed
        setattr(model, name, long_range_cutoff is not None)
    return calculator


def so3krates_torch(atoms: Atoms, device: str, budget: float) -> dict:
    """Time the network of `so3lr_of_torch`, and its calculator."""
    calculator = so3lr_of_torch(device)
    model = calculator.models[0]
    atoms.info.update(charge=0, multiplicity=1)
    if not atoms.pbc.any():
        atoms.set_cell(np.eye(3) * 60.0)
    batch = calculator._atoms_to_batch(atoms).to(device).to_dict()

    def network(one: dict) -> None:
        model(one, compute_stress=False)

    return _of_peer(network, batch, step_of_ase(atoms, calculator), device, budget)


def _of_peer(
    network: Callable[[dict], object],
    batch: dict,
    step: Callable[[], object],
    device: str,
    budget: float,
) -> dict:
    times = timed(budget, {"network": network}, device, lambda: (copied(batch),))
    times |= timed(budget / 4, {"ase_step": step}, device)
    return {"edges": int(batch["edge_index"].shape[1]), "peak_MiB": peak_mib(device), **times}


MACE_ELEMENTS = (*ELEMENTS, 35, 53)


def mace_off_sized(device: str) -> Any:
    """Return a MACE with random weights."""
    from e3nn import o3
    from mace import modules

    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = modules.ScaleShiftMACE(
        r_max=4.5,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(MACE_ELEMENTS),
        hidden_irreps=o3.Irreps("96x0e"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(MACE_ELEMENTS)),
        avg_num_neighbors=13.17,
        atomic_numbers=list(MACE_ELEMENTS),
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        radial_MLP=[64, 64, 64],
    )
    return model.to(device)


def mace_torch(atoms: Atoms, device: str, budget: float) -> dict:
    """Time the network of `mace_off_sized`, and MACE's calculator."""
    from mace import data, tools
    from mace.calculators import MACECalculator
    from mace.tools import torch_geometric

    model = mace_off_sized(device).requires_grad_(False)
    config = data.config_from_atoms(atoms)
    table = tools.AtomicNumberTable(list(MACE_ELEMENTS))
    graph = data.AtomicData.from_config(config, z_table=table, cutoff=4.5)
    loader = torch_geometric.dataloader.DataLoader([graph], batch_size=1)
    batch = next(iter(loader)).to(device).to_dict()

    def network(one: dict) -> None:
        model(one, compute_stress=False)

    calculator = MACECalculator(models=[model], device=device, default_dtype="float32")
    return _of_peer(network, batch, step_of_ase(atoms, calculator), device, budget)


def nequip(atoms: Atoms, device: str, budget: float) -> dict:
    """Time a NequIP with random weights, and its calculator."""
    from ase.data import chemical_symbols
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    symbols = [chemical_symbols[z] for z in ELEMENTS]
    model = NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        r_max=4.5,
        type_names=symbols,
        num_layers=4,
        l_max=2,
        num_features=32,
        avg_num_neighbors=13.17,
    )
    transforms = basic_transforms(model.metadata, 4.5, symbols, {s: s for s in symbols})
    calculator = NequIPCalculator(model.eval(), device, transforms=transforms)
    batch = calculator.atoms_to_data(atoms)
    return _of_peer(calculator.call_model, batch, step_of_ase(atoms, calculator), device, budget)


def equiformer_of_paper(size: str) -> Any:
    """Return the published network for MD17, with random weights, from a checkout on the path.

    The published package imports all of its networks, and with them Open Catalyst's code, which the
    networks for MD17 do not use. Therefore only the needed modules are imported. Two packages would
    take most of an hour to compile from source; the one function of each that is used is replaced.
    """
    from torch_geometric.utils import scatter

    spec = find_spec("nets")
    if spec is None:
        raise RuntimeError("no checkout of the published code on the path (`make peers`)")
    sys.modules["nets"] = module_from_spec(spec)  # not executed
    _stand_in("torch_scatter", scatter=scatter)
    _stand_in("torch_cluster", radius_graph=_radius_graph)
    above = "ocpmodels.models.gemnet.layers"
    for n in range(above.count(".") + 1):
        _stand_in(above.rsplit(".", n)[0])
    _stand_in(f"{above}.radial_basis", RadialBasis=torch.nn.Identity)
    networks = import_module("nets.graph_attention_transformer_md17")
    torch.manual_seed(0)
    build = getattr(networks, f"graph_attention_transformer_nonlinear_exp_{size}_md17")
    return build("64x0e", 5.0, num_basis=32)


def _stand_in(name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def _radius_graph(
    x: torch.Tensor, r: float, batch: torch.Tensor, max_num_neighbors: int
) -> torch.Tensor:
    """Return senders and receivers of all edges; `max_num_neighbors` is ignored."""
    apart = (x.detach()[:, None] - x.detach()).square().sum(2)
    near = (apart < r * r) & (batch[:, None] == batch)
    near.fill_diagonal_(False)
    return near.nonzero().T.flip(0)


def published_equiformer(atoms: Atoms, device: str, budget: float) -> dict:
    """Time the network of `equiformer_of_paper` with its edge search; it has no calculator."""
    model = equiformer_of_paper("l2").to(device).requires_grad_(False).eval()
    numbers = torch.as_tensor(atoms.numbers, device=device)
    one = torch.zeros_like(numbers)
    positions = torch.as_tensor(atoms.positions, dtype=torch.float32, device=device)

    def network(positions: torch.Tensor) -> None:
        model(node_atom=numbers, pos=positions, batch=one)

    times = timed(budget, {"network": network}, device, lambda: (positions.clone(),))
    return {"peak_MiB": peak_mib(device), **times}


PUBLISHED = {"cutoff_function": "none", "paths": "all"}
equiformer_l2 = partial(attncalc, potential=partial(equiformer, "l2", **PUBLISHED))
equiformer_l3 = partial(attncalc, potential=partial(equiformer, "l3", **PUBLISHED))
equiformer_ours = partial(attncalc, potential=partial(equiformer, "l2"))

# name -> function that measures it, and its hyper-parameters in words
ENGINES: dict[str, tuple[Callable[[Atoms, str, float], dict], str]] = {
    "attncalc": (attncalc, SO3LR),
    "attncalc-equiformer": (equiformer_ours, "our smooth Equiformer, 6 blocks, lmax 2, 5 Å"),
    "attncalc-equiformer-l2": (equiformer_l2, "the published function, lmax 2, 3.5 M parameters"),
    "attncalc-equiformer-l3": (equiformer_l3, "the published function, lmax 3, 5.5 M parameters"),
    "so3krates-torch": (so3krates_torch, SO3LR),
    "mace-torch": (mace_torch, MACE_OFF23_S),
    "nequip": (nequip, NEQUIP),
    "equiformer": (
        published_equiformer,
        f"{EQUIFORMER_OF_PAPER}; each call makes its list of edges and, as that code always does, "
        "a graph for second derivatives",
    ),
}


def installed(package: str) -> str:
    """Return the version of a package; a checkout may be used without installation."""
    if package == "equiformer":
        return f"(a checkout), e3nn {version('e3nn')}"
    try:
        return version(package)
    except PackageNotFoundError:
        return "(a checkout)"


def measure(engine: str, name: str, *, device: str, threads: int, budget: float) -> dict:
    """Return one row of measurements by name: times in ms per call, memory in MiB."""
    from structures import SYSTEMS

    torch.set_num_threads(threads)
    atoms = SYSTEMS[name]()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    imported = peak_mib(device)
    row = ENGINES[engine][0](atoms, device, budget)
    package = "attncalc" if engine.startswith("attncalc") else engine
    versions = (
        f"{package} {installed(package)}, torch {torch.__version__}, Python {python_version()}"
    )
    facts = {"engine": engine, "system": name, "atoms": len(atoms), "versions": versions}
    return {**facts, "imported_MiB": imported, **row}
