"""`Potential`: a network with everything that turns its numbers into eV, and `evaluate`."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor, nn

from attncalc.compiled import has_numba
from attncalc.graph import (
    ALL_PAIRS,
    OUTPUTS,
    AtomOutputs,
    Graph,
    Graphs,
    LinearizedTerm,
    OfArrays,
    OutputArrays,
    OutputsOfArrays,
    SummedGradient,
    species_of,
)
from attncalc.neighbors import fresh_graph
from attncalc.nn.network import linearize
from attncalc.novelty import Environments, Surroundings
from attncalc.ops import segment_sum
from attncalc.physics.pair_term import (
    energies_of,
    long_range_of,
    of_all_pairs,
    reads_system,
    strained,
)
from attncalc.system import System

# more than any machine has cores; not those of this one, as a run may be resumed on another
MOST_THREADS = 1024
# atoms of a batch of `evaluate_many`: bounds its memory
ATOMS_PER_BATCH = 2000
SMALLEST_VOLUME = 1e-8  # Å³; below it a cell has no volume


# what two ways to the same `Result` may differ by, see `deviation`; in float32, rounding alone is
# 1e-6 to 1e-5
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-8}


@dataclass(frozen=True)
class Spread:
    """Standard deviation over the members of a committee (of a sample: n - 1).

    Where the members disagree, their mean should not be trusted; where they agree, they may still
    be wrong together.

    Attributes:
        energy: [n_systems] eV.
        forces: [n_atoms, 3] eV/Å.
    """

    energy: Tensor
    forces: Tensor


@dataclass(frozen=True)
class Result:
    """Energy and its derivatives, all float64 and detached.

    Attributes:
        energy: [n_systems] eV.
        energies: [n_atoms] eV, per atom; they add up to `energy`.
        forces: [n_atoms, 3] eV/Å.
        strain_gradient: [n_systems, 3, 3] eV: dE / d strain, symmetric; see `stress`.
        spread: how far the members of a committee are apart; None for a single potential.
        charges: [n_atoms] e; None where the network does not predict them, or not all members do.
        hirshfeld_ratios: [n_atoms], see `attncalc.graph.AtomOutputs`; None likewise.
        surroundings: what `novelty` is computed from; None where the model does not know on what
            environments it was trained.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor
    strain_gradient: Tensor
    spread: Spread | None = None
    charges: Tensor | None = field(default_factory=NoneType)
    hirshfeld_ratios: Tensor | None = field(default_factory=NoneType)
    surroundings: Surroundings | None = None

    @functools.cached_property
    def novelty(self) -> NDArray[np.float64] | None:
        """[n_atoms], no unit: how far each atom is outside the environments of the training.

        1 is the edge of what training held, see `attncalc.novelty.Environments`. It is computed
        when it is first asked for. Of a committee it is that of the first member which knows its
        training; None where none does.
        """
        return None if self.surroundings is None else self.surroundings.novelty()

    def stress(self, system: System) -> Tensor:
        """[n_systems, 3, 3] eV/Å³: (1/V) dE / d strain, ASE's sign.

        Args:
            system: the structures that were evaluated.

        Raises:
            ValueError: a structure has no volume.
        """
        volume = volumes(system)
        if (volume < SMALLEST_VOLUME).any():
            first = int((volume < SMALLEST_VOLUME).nonzero()[0])
            raise ValueError(
                f"structure {first} has no volume, so stress is not defined: set three cell vectors"
            )
        return self.strain_gradient / volume[:, None, None]

    @property
    def arrays(self) -> ResultArrays:
        """The same as arrays on the CPU."""
        values = {name: getattr(self, name) for name in ResultArrays._fields}
        present = {name: value for name, value in values.items() if value is not None}
        return ResultArrays(**{name: value.cpu().numpy() for name, value in present.items()})


class ResultArrays(NamedTuple):
    """Arrays of a `Result` on the CPU."""

    energy: NDArray[Any]  # of float64, which `bincount` does not declare
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    strain_gradient: NDArray[np.float64]
    charges: NDArray[np.float64] | None = None
    hirshfeld_ratios: NDArray[np.float64] | None = None


class ResultOfArrays(OfArrays, Result):
    """Result made of `ResultArrays`."""


class Potential(nn.Module):
    """Network + pair terms + species table + scale + reference energies.

    E_i = scale[species] * network_i + reference_energies[species] + pair terms.

    Args:
        network: an `attncalc.nn.network.Network`.
        species: atomic number of every row of the network's species table.
        reference_energies: eV per species; zeros if not given.
        scale: eV per unit of the network's energies, per species; ones if not given.
        pair_terms: closed-form terms `(graph, outputs) -> [n_atoms]` eV, see
            `attncalc.physics.pair_term.PairTerm`.
        training: what is worth knowing about the training (data, level of theory, errors ...).

    Attributes:
        threads: that compiled steps on a CPU use for a large structure.
        checksum: SHA-256 of the model file that it was loaded from; "" for any other.
        environments: that it was trained on; None where they are not known, see
            `attncalc.calibrate`.
    """

    checksum: Any = ""
    environments: Environments | None = None
    network: Any  # an nn.Module with `config` and the rest, for which there is no annotation
    reference_energies: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        species: Sequence[int],
        *,
        reference_energies: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        pair_terms: Sequence[nn.Module] = (),
        training: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.species = tuple(int(z) for z in species)
        n = len(self.species)
        self.register_buffer("reference_energies", _per_species(reference_energies, 0.0, n))
        self.register_buffer("scale", _per_species(scale, 1.0, n))
        self.pair_terms = nn.ModuleList(pair_terms)
        self.training_info = dict(training or {})
        self.threads = 1

    @property
    def members(self) -> list[Any]:
        """Potentials whose mean it is; of most, itself alone."""
        members: Any = self._modules.get("members")
        return [self] if members is None else list(members)

    @property
    def knows_its_training(self) -> bool:
        """Return True if its results have a novelty."""
        return any(member.environments is not None for member in self.members)

    @property
    def knows_closed_shells_only(self) -> bool:
        """Return True if a member was trained on molecules with closed shells alone."""
        return any(member.training_info.get("closed_shells") for member in self.members)

    @property
    def cutoff(self) -> float:
        """Interaction range of one layer, Å."""
        return self.members[0].network.config.graph_cutoff

    @property
    def all_pair_terms(self) -> list[Any]:
        """Pair terms of all members."""
        return [term for member in self.members for term in member.pair_terms]

    @property
    def long_range(self) -> float | None:
        """Interaction range of its longest pair term, Å, where that exceeds the network's."""
        ranges = [long_range_of(term) for term in self.all_pair_terms]
        return max((length for length in ranges if length is not None), default=None)

    @property
    def counts_all_pairs(self) -> bool:
        """Return True if a pair term has another form for molecules, of all pairs."""
        return any(of_all_pairs(term) is not None for term in self.all_pair_terms)

    @property
    def reads_system(self) -> bool:
        """Return True if a pair term reads positions and cells instead of a graph."""
        return any(reads_system(term) for term in self.all_pair_terms)

    def long_range_for(self, system: System) -> float | None:
        """Interaction range of its longest pair term in these structures, Å, as `long_range`.

        Raises:
            ValueError: it is another in molecules than in periodic structures, and both are there.
        """
        if not self.counts_all_pairs:
            return self.long_range
        periodic = system.pbc.any(1)
        if not periodic.any():
            return ALL_PAIRS
        if not periodic.all():
            raise ValueError(
                "molecules and periodic structures in one batch: this model counts all pairs of "
                f"the former, and those within {self.long_range:g} Å of the latter; evaluate them "
                "apart, or give a long_range_cutoff"
            )
        return self.long_range

    def terms_for(self, graphs: Graphs) -> list[Any]:
        """Pair terms in their form for these structures."""
        terms = list(self.pair_terms)
        if not graphs.all_pairs:
            return terms
        return [term if (other := of_all_pairs(term)) is None else other for term in terms]

    def set_long_range_cutoff(self, cutoff: float) -> None:
        """Let pair terms of longer range end there in all structures, in place.

        Energies of different cutoffs must not be compared.

        Args:
            cutoff: Å; `math.inf` counts all pairs, of molecules only.

        Raises:
            ValueError: no pair term takes another cutoff, or this is none.
        """
        if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not cutoff > 0:
            raise ValueError(f"long_range_cutoff must be a positive number of Å, got {cutoff!r}")
        end = None if cutoff == math.inf else float(cutoff)
        found = False
        for member in self.members:
            for n, term in enumerate(member.pair_terms):
                if hasattr(term, "with_cutoff"):
                    member.pair_terms[n], found = term.with_cutoff(end), True
        if not found:
            raise ValueError("long_range_cutoff: this model has no pair term of longer range")

    @property
    def device(self) -> torch.device:
        """Device of its tensors."""
        return self.members[0].reference_energies.device

    @property
    def dtype(self) -> torch.dtype:
        """The least precise dtype that a network computes in; sums and pair terms are float64."""
        dtypes = {next(network.parameters()).dtype for network in self.networks}
        return torch.float32 if torch.float32 in dtypes else dtypes.pop()

    @property
    def networks(self) -> list[Any]:
        """Networks of all members."""
        return [member.network for member in self.members]

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the first member's network."""
        return sum(p.numel() for p in self.networks[0].parameters())

    @property
    def baseline(self) -> str:
        """Method to which a delta model's results are to be added; "" for a whole potential."""
        return str(self.members[0].training_info.get("baseline") or "")

    @property
    def reads_charge(self) -> bool:
        """Return True if the energy depends on the total charge, for all members."""
        return all(network.reads_charge for network in self.networks)

    @property
    def reads_spin(self) -> bool:
        """Return True if the energy depends on the multiplicity, for all members."""
        return all(network.reads_spin for network in self.networks)

    @property
    def predicts_charges(self) -> bool:
        """Return True if the network predicts partial charges, for all members."""
        return all(getattr(network.config, "predict_charges", False) for network in self.networks)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Change the dtype of the networks, in place."""
        for network in self.networks:
            network.to(dtype)

    def set_num_threads(self, threads: int) -> None:
        """Let compiled steps on a CPU use so many threads for a large structure.

        The same number gives the same bits; another number, other rounding.

        Raises:
            ValueError: it is no whole number from 1 to MOST_THREADS.
        """
        try:
            whole = 0 if isinstance(threads, bool) else operator.index(threads)
        except TypeError:
            whole = 0
        if not 1 <= whole <= MOST_THREADS:
            raise ValueError(
                f"threads must be a whole number from 1 to {MOST_THREADS}, got {threads!r}"
            )
        for one in (self, *self.members):
            one.threads = whole

    def energies(self, graph: Graph | Graphs) -> Tensor:
        """Energies per atom [n_atoms] eV, float64, differentiable by the vectors of the graph.

        Of a committee, their mean.
        """
        graphs = graph if isinstance(graph, Graphs) else Graphs(graph)
        return torch.stack([member.predict(graphs)[0] for member in self.members]).mean(0)

    def predict(self, graphs: Graphs) -> tuple[Tensor, AtomOutputs]:
        """Energies per atom [n_atoms] eV as `energies`, and the outputs of the network.

        Args:
            graphs: with vectors to differentiate by.

        Raises:
            AttributeError: it is a committee, which has several networks.
        """
        outputs = self.network(graphs.short)
        energies = self.to_eV(outputs.energies, graphs.short)
        for term in self.terms_for(graphs):
            energies = energies + energies_of(term, graphs, outputs)
        return energies, outputs

    def to_eV(self, energies: Tensor, graph: Graph) -> Tensor:
        """Energies [n_atoms] as the network gives them -> eV, float64, without pair terms."""
        scaled = self.scale[graph.species] * energies.to(self.scale.dtype)
        return scaled + self.reference_energies[graph.species]


class Committee(Potential):
    """A potential that is the mean of several, with their spread as a warning.

    Trained on the same data from different random weights, networks agree where the data decide
    and differ elsewhere; their mean is closer to the truth than most of them.

    Args:
        members: two or more, of the same species and cutoff, which correct the same method or
            none; those of a committee among them are taken one by one.
        training: as for `Potential`.

    Raises:
        ValueError: there are fewer than two members, they differ in species, cutoff or baseline,
            or one stands twice.
    """

    def __init__(
        self, members: Sequence[Potential], *, training: Mapping[str, Any] | None = None
    ) -> None:
        nn.Module.__init__(self)  # a committee has no network of its own
        # the members of a committee count like others: all have the same weight in the mean
        members = [one for member in members for one in member.members]
        if len(members) < 2:
            raise ValueError(f"a committee needs two members or more, got {len(members)}")
        for name in ("species", "cutoff", "baseline"):
            values = sorted({getattr(member, name) for member in members})
            if len(values) > 1:
                raise ValueError(
                    f"members of a committee must have the same {name}, "
                    f"got {', '.join(str(value) or 'none' for value in values)}"
                )
        for k, member in enumerate(members):
            if any(_same_weights(member, other) for other in members[:k]):
                raise ValueError(
                    "the same model is twice in a committee: its spread would mean nothing"
                )
        self._modules["members"] = nn.ModuleList(members)  # the property of this name reads it
        self.species, self.threads = members[0].species, members[0].threads
        self.training_info = dict(training or {})


def evaluate(potential: Potential, graph: Graph | Graphs) -> Result:
    """Energy, forces and strain derivative from one gradient by the edge vectors.

    A committee takes one gradient per member, and its result has the spread.

    Args:
        potential: as loaded, or as `attncalc.fast.lower` has made it.
        graph: of the structures; `Graphs` where pair terms reach further than the network.

    Raises:
        RuntimeError: called under `torch.inference_mode()`.
        ValueError: a pair term needs a graph of longer range.
    """
    return _evaluate(potential, graph, waits=True)


def evaluate_without_waiting(potential: Potential, graph: Graph | Graphs) -> Result:
    """Evaluate without asking an engine of a GPU whether it could: nothing is read back.

    Where it could not (two atoms of a system are closer than its tables reach), energy and forces
    of this system are NaN: look at the energies before anything is made of them.
    """
    return _evaluate(potential, graph, waits=False)


def _evaluate(potential: Potential, graph: Graph | Graphs, *, waits: bool) -> Result:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "torch.inference_mode() forbids gradients, which forces need: use torch.no_grad()"
        )
    graphs = graph if isinstance(graph, Graphs) else Graphs(graph)
    members = potential.members
    each = (edge_gradients(one, graphs, waits=waits, sums=True) for one in members)
    results = [assemble(graphs, gradients) for gradients in each]
    return results[0] if len(results) == 1 else _mean(results)


@dataclass(frozen=True)
class EdgeGradients:
    """Energies of a potential, and the gradient of those that count by all edge vectors.

    All are tensors, or all are arrays on the CPU.

    Attributes:
        energies: [n_atoms] eV; zero for ghosts, but for pairs of longer range that are divided.
        short: [n_edges, 3] eV/Å, of the network's graph.
        long: [n_edges, 3] eV/Å, of the graph of longer range; None where there is none.
        others: outputs of the network beside energies, by name, float64.
        summed: what pair terms have summed up themselves.
        surroundings: see `Result`.
    """

    energies: Any
    short: Any
    long: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)
    summed: Sequence[SummedGradient] = ()
    surroundings: Surroundings | None = None

    @property
    def tensors(self) -> EdgeGradients:
        """The same as tensors."""
        if isinstance(self.energies, Tensor):
            return self
        return EdgeGradients(
            torch.from_numpy(self.energies),
            torch.from_numpy(self.short),
            None if self.long is None else torch.from_numpy(self.long),
            {name: torch.from_numpy(value) for name, value in self.others.items()},
            [SummedGradient(*map(torch.from_numpy, one)) for one in self.summed],
            self.surroundings,
        )


def edge_gradients(
    member: Potential, graphs: Graphs, *, waits: bool = True, sums: bool = False
) -> EdgeGradients:
    """Energies and their gradient by edge vectors: scale, reference energies, pair terms, ghosts.

    Of an engine whose outputs are arrays everything is arrays: a tensor costs as much as a loop
    over the atoms of a small molecule.

    Args:
        member: a single potential, no committee.
        graphs: of the structures.
        waits: see `attncalc.nn.network.linearize`.
        sums: True where a pair term may sum up its gradient itself, which then is in `summed`.
    """
    graph, n_counted = graphs.short, graphs.n_counted
    outputs, pull = linearize(member.network, graph, waits=waits)
    surroundings = _surroundings(member, outputs, graph)
    if graphs.shared is not None:
        outputs = graphs.shared.complete(outputs)
    in_arrays = outputs.arrays is not None
    factor, energies = (_scaled_arrays if in_arrays else _scaled)(member, outputs, graph)
    if n_counted is not None:
        energies[n_counted:] = 0
    others = _others(outputs)
    d_outputs = {"energies": factor}
    gradients: dict[bool, Any] = {False: None, True: None}
    summed: list[SummedGradient] = []
    for term in member.terms_for(graphs):
        long_range = long_range_of(term)
        is_long, n = long_range is not None, graphs.n_counted_of(long_range)
        found = _linearize_term(term, outputs, graphs, sums=sums)
        of_term, by_vectors, by_outputs = _in_arrays(found) if in_arrays else _in_tensors(found)
        energies[:n] += of_term[:n]
        if isinstance(by_vectors, SummedGradient):
            summed.append(by_vectors)
        else:
            before = gradients[is_long]
            gradients[is_long] = by_vectors if before is None else before + by_vectors
        for name, value in by_outputs.items():
            d_outputs[name] = d_outputs[name] + value if name in d_outputs else value
    for name in others:
        if name not in d_outputs:  # no term reads it
            d_outputs[name] = 0 * factor
    if n_counted is not None:
        d_outputs["energies"][n_counted:] = 0
    if graphs.shared is not None:
        d_outputs |= graphs.shared.give_back({name: d_outputs[name] for name in others})
    given = OutputsOfArrays.of(OutputArrays(**d_outputs)) if in_arrays else AtomOutputs(**d_outputs)
    short = pull(given)
    if (of_terms := gradients[False]) is not None:
        short = short + of_terms
    return EdgeGradients(energies, short, gradients[True], others, summed, surroundings)


def _others(outputs: AtomOutputs) -> dict[str, Any]:
    """Outputs beside the energies, by name, in float64: arrays where outputs are made of these."""
    arrays = outputs.arrays
    given = outputs if arrays is None else arrays
    named = {name: getattr(given, name) for name in OUTPUTS[1:]}
    return {
        name: value if arrays is not None else value.double()
        for name, value in named.items()
        if value is not None
    }


def _in_arrays(found: LinearizedTerm) -> LinearizedTerm:
    return _each(found, lambda value: value.numpy() if isinstance(value, Tensor) else value)


def _in_tensors(found: LinearizedTerm) -> LinearizedTerm:
    return _each(found, torch.as_tensor)


def _each(found: LinearizedTerm, change: Callable[[Any], Any]) -> LinearizedTerm:
    energies, by_vectors, by_outputs = found
    return LinearizedTerm(
        change(energies),
        SummedGradient(*map(change, by_vectors))
        if isinstance(by_vectors, SummedGradient)
        else change(by_vectors),
        {name: change(value) for name, value in by_outputs.items()},
    )


def _surroundings(member: Potential, outputs: AtomOutputs, graph: Graph) -> Surroundings | None:
    environments = member.environments
    if environments is None:
        return None
    network = member._modules["network"]  # attributes of a module are found late
    plain = getattr(network, "network", network) if outputs.features is None else None
    return Surroundings(environments, outputs.features, graph, plain)


class _ScaleArrays:
    """Scale and reference energies of a potential on the CPU as arrays, which share its memory."""

    def __init__(self, scale: Tensor, reference: Tensor) -> None:
        self.tensors = scale, reference
        self.scale, self.reference = scale.numpy(), reference.numpy()

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the potential has memory of its own

    @classmethod
    def of(cls, member: Potential) -> _ScaleArrays:
        """Arrays as they were made last time, where the tensors are still the same."""
        buffers = member._buffers  # attributes of a module are found late, and this is every step
        scale, reference = buffers["scale"], buffers["reference_energies"]
        last: _ScaleArrays | None = member.__dict__.get("_scale_arrays")
        if last is None or last.tensors[0] is not scale or last.tensors[1] is not reference:
            assert scale is not None
            assert reference is not None
            last = member.__dict__["_scale_arrays"] = cls(scale, reference)
        return last


def _scaled_arrays(member: Potential, outputs: AtomOutputs, graph: Graph) -> tuple[Any, Any]:
    """Scale of every atom, and energies in eV, as `_scaled`: arrays, in a third of its time."""
    species, arrays, found = graph.arrays.species, _ScaleArrays.of(member), outputs.arrays
    assert found is not None
    factor = arrays.scale[species]
    return factor, factor * found.energies + arrays.reference[species]


def _scaled(member: Potential, outputs: AtomOutputs, graph: Graph) -> tuple[Any, Any]:
    """Scale of every atom, and energies in eV, both [n_atoms] and float64."""
    factor = member.scale.index_select(0, graph.species)
    of_species = member.reference_energies.index_select(0, graph.species)
    return factor, torch.addcmul(of_species, factor, outputs.energies.to(factor.dtype))


def _linearize_term(
    term: Any, outputs: AtomOutputs, graphs: Graphs, *, sums: bool
) -> LinearizedTerm:
    """Energies [n_atoms] of a pair term, and the gradients of their sum by vectors and outputs."""
    if reads_system(term):
        return _linearize_by_strain(term, outputs, graphs, sums=sums)
    long_range = long_range_of(term)
    graph, n_counted = graphs.of_range(long_range), graphs.n_counted_of(long_range)
    if n_counted is None and hasattr(term, "linearize"):  # in closed form
        found: LinearizedTerm = term.linearize(graph, outputs)
        if sums or not isinstance(found.by_vectors, SummedGradient):
            return found
    vectors = graph.vectors.detach().requires_grad_(True)
    given = _to_differentiate_by(outputs, OUTPUTS)
    with torch.enable_grad():
        energies = term(graph.with_vectors(vectors), AtomOutputs(**given))
        total = energies[:n_counted].sum()
        if not total.requires_grad:  # a constant
            return LinearizedTerm(energies, torch.zeros_like(vectors), {})
        by_vectors, *by_outputs = torch.autograd.grad(
            total, [vectors, *given.values()], materialize_grads=True, allow_unused=True
        )
    by_name = dict(zip(given, by_outputs, strict=True))
    return LinearizedTerm(energies.detach(), by_vectors, by_name)


def _to_differentiate_by(outputs: AtomOutputs, names: Sequence[str]) -> dict[str, Tensor]:
    return {
        name: value.detach().double().requires_grad_(True)
        for name in names
        if (value := getattr(outputs, name)) is not None
    }


def _linearize_by_strain(
    term: Any, outputs: AtomOutputs, graphs: Graphs, *, sums: bool
) -> LinearizedTerm:
    """The same of a term that reads positions and cells."""
    if graphs.n_counted is not None or not sums:
        raise ValueError(
            f"{type(term).__name__} sums over the whole structure: neither a part of it with "
            "ghost atoms nor the stress of each atom can be evaluated"
        )
    given = _to_differentiate_by(outputs, OUTPUTS[1:])
    with torch.enable_grad():
        graphs, positions, strain = strained(graphs)
        energies = energies_of(term, graphs, AtomOutputs(outputs.energies, **given))
        gradient, by_strain, *by_outputs = torch.autograd.grad(
            energies.sum(),
            [positions, strain, *given.values()],
            materialize_grads=True,
            allow_unused=True,
        )
    symmetric = (by_strain + by_strain.transpose(1, 2)) / 2
    by_name = dict(zip(given, by_outputs, strict=True))
    return LinearizedTerm(energies.detach(), SummedGradient(-gradient, symmetric), by_name)


def assemble(graphs: Graphs, gradients: EdgeGradients) -> Result:
    """Sums of energies, forces and strain gradients.

    With g_e = dE / d vector_e of the edge from receiver i to sender j: F_i += g_e, F_j -= g_e, and
    dE / d strain = sum_e vector_e (x) g_e, since a strain maps every vector r to r (1 + strain).
    """
    graph, energies = graphs.short, gradients.energies
    parts = [(graph, gradients.short)]
    if graphs.long is not None and gradients.long is not None:
        parts.append((graphs.long, gradients.long))
    if not isinstance(energies, Tensor):
        return _assemble_by_loop(graph, energies, parts, gradients)
    if energies.device.type == "cpu" and has_numba():
        of_edges = [(edges, gradient.numpy()) for edges, gradient in parts]
        return _assemble_by_loop(graph, energies.numpy(), of_edges, gradients)
    energy = segment_sum(energies, graph.system_idx, graph.n_systems)
    forces = energies.new_zeros(graph.n_atoms, 3)
    strain_gradient = energies.new_zeros(graph.n_systems, 3, 3)
    for edges, gradient in parts:
        # on a GPU `index_put` sorts before it adds, `index_add` adds in any order
        atoms = torch.cat([edges.receivers, edges.senders])
        forces = forces.index_put((atoms,), torch.cat([gradient, -gradient]), accumulate=True)
        strain_gradient = strain_gradient + _strain_gradient(edges, gradient)
    for more in gradients.summed:
        forces = forces + torch.as_tensor(more.forces)
        strain_gradient = strain_gradient + torch.as_tensor(more.strain_gradient)
    return Result(
        *(energy, energies, forces, strain_gradient),
        **gradients.others,
        surroundings=gradients.surroundings,
    )


def atom_virials(graphs: Graphs, gradients: EdgeGradients) -> Tensor:
    """[n_atoms, 3, 3] eV: the strain gradient divided among atoms, whose sum it is.

    Each edge gives half of vector (x) gradient, symmetrized, to each of its two atoms. The division
    is one of many: only sums over many atoms have a meaning that does not depend on it. In
    particular it does not give the heat flux of a network with several layers, which needs the
    derivatives of each atom's energy (Langer, Knoop, Carbogno, Scheffler & Rupp, Phys. Rev. B 108,
    L100302, 2023).
    """
    n_atoms, gradients = graphs.short.n_atoms, gradients.tensors
    virials = gradients.energies.new_zeros(n_atoms, 3, 3)
    parts = [(graphs.short, gradients.short)]
    if graphs.long is not None and gradients.long is not None:
        parts.append((graphs.long, gradients.long))
    for edges, gradient in parts:
        outer = edges.vectors.unsqueeze(2) * gradient.unsqueeze(1) / 4
        outer = outer + outer.transpose(1, 2)
        virials = virials + segment_sum(outer, edges.receivers, n_atoms)
        virials = virials + segment_sum(outer, edges.senders, n_atoms)
    return virials


def _assemble_by_loop(
    graph: Graph,
    energies: NDArray[np.float64],
    parts: Sequence[tuple[Graph, NDArray[np.float64]]],
    gradients: EdgeGradients,
) -> Result:
    n_systems, system_idx, loop = graph.n_systems, graph.arrays.system_idx, assemble_loop()
    forces, strain_gradient = np.zeros((len(energies), 3)), np.zeros((n_systems, 3, 3))
    for edges, gradient in parts:
        vectors, receivers, senders, *_ = edges.arrays
        loop(vectors, receivers, senders, gradient, system_idx, forces, strain_gradient)
    for more in gradients.summed:
        forces += np.asarray(more.forces)
        strain_gradient += np.asarray(more.strain_gradient)
    # adds in the order of the atoms, as `segment_sum` does in several times as long
    energy = np.bincount(system_idx, energies, minlength=n_systems)
    others = {name: np.asarray(value) for name, value in gradients.others.items()}
    arrays = ResultArrays(energy, energies, forces, strain_gradient, **others)
    return ResultOfArrays.of(arrays, surroundings=gradients.surroundings)


@functools.cache
def assemble_loop() -> Callable[..., None]:
    """The compiled loop of `assemble` on the CPU."""
    from attncalc.kernels.assemble_loop import assemble

    return assemble


def _same_weights(one: Potential, other: Potential) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name])
        for name in ours
    )


def _mean(results: list[Result]) -> Result:
    def all_of(name: str) -> Tensor:
        return torch.stack([getattr(result, name) for result in results])

    energy_spread, energy = torch.std_mean(all_of("energy"), 0)
    forces_spread, forces = torch.std_mean(all_of("forces"), 0)
    return Result(
        energy=energy,
        energies=all_of("energies").mean(0),
        forces=forces,
        strain_gradient=all_of("strain_gradient").mean(0),
        spread=Spread(energy=energy_spread, forces=forces_spread),
        surroundings=next((one.surroundings for one in results if one.surroundings), None),
        **{
            name: all_of(name).mean(0)
            for name in OUTPUTS[1:]
            if all(getattr(result, name) is not None for result in results)
        },
    )


def deviation(ours: Result, theirs: Result) -> float:
    """Largest difference of energies per atom, forces and strain gradients of one structure.

    In eV and eV/Å; relative to the largest force component where that exceeds 1 eV/Å. NaN if any
    number is.
    """
    scale = theirs.forces.abs().amax().clamp(min=1.0)
    differences = [
        (getattr(ours, name) - getattr(theirs, name)).abs().amax()
        for name in ("energies", "forces", "strain_gradient")
    ]
    return float(torch.stack(differences).amax() / scale)


def evaluate_many(
    potential: Potential, structures: Sequence[Atoms], *, batch_atoms: int = ATOMS_PER_BATCH
) -> Iterator[tuple[System, Result]]:
    """Evaluate structures of any kind in batches, in order.

    Args:
        potential: the model.
        structures: may differ in size, elements, cell, charge.
        batch_atoms: structures share a batch up to so many atoms; a larger one has its own.

    Raises:
        ValueError: a structure is impossible or not known to the model; the message names it.
    """
    for first, last in batches(structures, batch_atoms, apart=potential.counts_all_pairs):
        try:
            yield _evaluate_fresh(potential, structures[first:last])
        except ValueError:
            for k, atoms in enumerate(structures[first:last], start=first):
                try:
                    _evaluate_fresh(potential, [atoms])
                except ValueError as error:
                    raise ValueError(f"structure {k}: {error}") from None
            raise


def batches(
    structures: Sequence[Atoms], batch_atoms: int, *, apart: bool = False
) -> Iterator[tuple[int, int]]:
    """First structure of a batch and the one behind its last, for all batches in order.

    Args:
        structures: all of them.
        batch_atoms: structures share a batch up to so many atoms; a larger one has its own.
        apart: molecules and periodic structures never share one.
    """
    first, n_atoms = 0, 0
    for k, atoms in enumerate(structures):
        differs = apart and k > first and atoms.pbc.any() != structures[k - 1].pbc.any()
        if k > first and (differs or n_atoms + len(atoms) > batch_atoms):
            yield first, k
            first, n_atoms = k, 0
        n_atoms += len(atoms)
    if len(structures):
        yield first, len(structures)


def _evaluate_fresh(potential: Potential, structures: Sequence[Atoms]) -> tuple[System, Result]:
    system = System.from_ase(structures)
    check_system(potential, system)
    system = system.to(potential.device)
    return system, evaluate(potential, fresh_graphs(potential, system))


def fresh_graphs(potential: Potential, system: System) -> Graphs:
    """Graphs of a system for a potential, from new neighbour lists.

    Raises:
        ValueError: as `attncalc.neighbors.fresh_graph` and `Potential.long_range_for`.
    """
    species, long_range = potential.species, potential.long_range_for(system)
    short = fresh_graph(system, cutoff=potential.cutoff, species=species)
    if long_range is None:
        return Graphs(short, system=system)
    far = fresh_graph(system, cutoff=long_range, species=species, by_pairs=True)
    return Graphs(short, far, all_pairs=long_range == ALL_PAIRS, system=system)


def volumes(system: System) -> Tensor:
    """[n_systems] Å³; zero where there are not three cell vectors."""
    a, b, c = system.cell.unbind(1)
    return (torch.linalg.cross(a, b) * c).sum(1).abs()


def check_system(potential: Potential, system: System) -> None:
    """Refuse elements that the model does not know, and what its network would silently ignore.

    Raises:
        ValueError: an element is unknown; a structure is charged, or not in its lowest spin state,
            and the network has no input for that; it is a radical, and the model was trained on
            closed shells; or it is periodic, and the model looks at all pairs of atoms; or as
            `Potential.long_range_for`.
    """
    species_of(system.atomic_numbers, potential.species)
    longest = max(potential.cutoff, potential.long_range_for(system) or 0)
    if longest >= ALL_PAIRS and system.pbc.any():
        remedy = (
            "use a model of finite range" if potential.long_range is None else "long_range_cutoff"
        )
        raise ValueError(
            "this model sums over all pairs of atoms, and a periodic structure has infinitely "
            f"many: set atoms.pbc = False or {remedy}"
        )
    if potential.reads_system and (system.pbc.any(1) & ~system.pbc.all(1)).any():
        raise ValueError(
            "the Ewald sum of this model is for three periodic directions or none: set "
            "atoms.pbc = True with vacuum in the cell, or atoms.pbc = False"
        )
    if not potential.reads_charge and (charged := system.charge[system.charge != 0]).numel():
        raise ValueError(
            f"total charge {int(charged[0]):+d} e: this model supports neutral structures only; "
            'remove atoms.info["charge"] or use a model with charge input'
        )
    if not potential.reads_spin and (system.spin > 2).any():
        raise ValueError(
            f"multiplicity {int(system.spin.max())}: this model supports only the lowest spin "
            'state; remove atoms.info["spin"] or use a model with spin input'
        )
    if potential.knows_closed_shells_only:
        protons = segment_sum(system.atomic_numbers, system.system_idx, system.n_systems)
        refuse_radicals(protons - system.charge.long(), system.pbc)


def refuse_radicals(electrons: Tensor, pbc: Tensor) -> None:
    """Refuse molecules with an odd number of electrons, for models trained on closed shells.

    Args:
        electrons: [n_systems], numbers of them.
        pbc: [n_systems, 3], bool.

    Raises:
        ValueError: a molecule is a radical.
    """
    odd = (electrons % 2 == 1) & ~pbc.any(1)
    if odd.any():
        k = int(odd.nonzero()[0])
        where = f" of structure {k}" if len(electrons) > 1 else ""
        raise ValueError(
            f"the number of electrons{where} is odd, {int(electrons[k])}: this model was trained "
            'on closed shells only; is a hydrogen atom missing, or atoms.info["charge"]?'
        )


def forces_from_edges(gradient: Tensor, receivers: Tensor, senders: Tensor, n_atoms: int) -> Tensor:
    """[n_atoms, 3]: minus the gradient by positions, from dE / d vectors [n_edges, 3]."""
    forces = gradient.new_zeros(n_atoms, 3).index_add(0, receivers, gradient)
    return forces.index_add(0, senders, -gradient)


def _strain_gradient(graph: Graph, gradient: Tensor) -> Tensor:
    if graph.n_systems == 1:
        strain_gradient = (graph.vectors.T @ gradient).unsqueeze(0)
    else:
        outer = graph.vectors.unsqueeze(2) * gradient.unsqueeze(1)
        strain_gradient = segment_sum(outer, graph.system_idx[graph.receivers], graph.n_systems)
    # rotational invariance makes it symmetric; averaging removes what rounding leaves
    return (strain_gradient + strain_gradient.transpose(1, 2)) / 2


def _per_species(values: Sequence[float] | None, default: float, n_species: int) -> Tensor:
    if values is None:
        return torch.full((n_species,), default, dtype=torch.float64)
    tensor = torch.as_tensor(values, dtype=torch.float64).clone()
    if tensor.shape != (n_species,):
        raise ValueError(f"one value per species ({n_species}) needed, got {list(tensor.shape)}")
    return tensor
