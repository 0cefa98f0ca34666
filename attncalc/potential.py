"""`Potential`: a network with scale, reference energies and pair terms; and `evaluate`."""

from __future__ import annotations

import functools
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attncalc.compiled import cpu_loops, gpu_kernels, has_numba
from attncalc.graph import (
    ALL_PAIRS,
    OUTPUTS,
    AtomOutputs,
    Graph,
    Graphs,
    LinearizedTerm,
    OutputArrays,
    OutputsOfArrays,
    SummedGradient,
)
from attncalc.nn.network import CompiledNetwork, linearize
from attncalc.novelty import Environments, NoveltyInputs
from attncalc.ops import segment_sum, with_modules
from attncalc.physics.pair_term import (
    energies_of,
    is_zero,
    long_range_of,
    of_all_pairs,
    reads_system,
    strained,
)
from attncalc.pickling import PlainlyPickled
from attncalc.result import Result, ResultArrays, ResultOfArrays, mean_of
from attncalc.system import System

# more than the cores of any machine, not just of this one: a run may be resumed elsewhere
MOST_THREADS = 1024


class Potential(PlainlyPickled, nn.Module):
    """Network + pair terms + species table + scale + reference energies.

    E_i = scale[species] * network_i + reference_energies[species] + pair terms.

    Args:
        network: an `attncalc.nn.network.Network`.
        species: atomic number of every row of the network's species table.
        reference_energies: eV per species; zeros if not given.
        scale: eV per unit of the network's energies, per species; ones if not given.
        pair_terms: closed-form terms `(graph, outputs) -> [n_atoms]` eV, see
            `attncalc.physics.pair_term.PairTerm`.
        training: information about the training (data, level of theory, errors ...).

    Raises:
        ValueError: an element is twice in `species`, or energies or scales are not one per species.

    Attributes:
        threads: number of threads of a compiled network on a CPU for large structures.
        checksum: SHA-256 of the model file it was loaded from; "" if it was not loaded.
        environments: of the training; None if they are not known, see `attncalc.calibrate`.
    """

    checksum: Any = ""
    environments: Environments | None = None
    network: Any  # an nn.Module that is a `Network`, for which there is no annotation
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
        if len(set(self.species)) < n:
            raise ValueError(f"species contains an element twice: {self.species}")
        self.register_buffer("reference_energies", _per_species(reference_energies, 0.0, n))
        self.register_buffer("scale", _per_species(scale, 1.0, n))
        self.pair_terms = nn.ModuleList(pair_terms)
        self.training_info = dict(training or {})
        self.threads = 1

    @property
    def members(self) -> list[Any]:
        """Members of a committee; [self] for a single potential."""
        members: Any = self._modules.get("members")
        return [self] if members is None else list(members)

    @property
    def lowered_from(self) -> Potential:
        """Potential that `attncalc.fast.lower` made this one of; itself if it was not lowered."""
        if len(self.members) == 1:
            found: tuple[Potential] = vars(self).get("_lowered_from", (self,))
            return found[0]
        plain = [member.lowered_from for member in self.members]
        if plain == self.members:
            return self
        return with_modules(self, members=nn.ModuleList(plain))

    @property
    def knows_its_training(self) -> bool:
        """Return True if its results have a novelty."""
        return any(member.environments is not None for member in self.members)

    @property
    def knows_closed_shells_only(self) -> bool:
        """Return True if a member was trained on closed-shell molecules only."""
        return any(info.get("closed_shells") for info in self._trainings)

    @property
    def known_charges(self) -> tuple[int, int] | None:
        """Smallest and largest total charge [e] that all members were trained on; None: unknown."""
        return self._trained_on("total_charges")

    @property
    def known_multiplicities(self) -> tuple[int, int] | None:
        """Smallest and largest multiplicity that all members were trained on; None: unknown."""
        return self._trained_on("multiplicities")

    def _trained_on(self, name: str) -> tuple[int, int] | None:
        ranges = [info.get(name) for info in self._trainings]
        known = [(int(least), int(largest)) for least, largest in filter(None, ranges)]
        return (max(k[0] for k in known), min(k[1] for k in known)) if known else None

    @property
    def _trainings(self) -> list[dict[str, Any]]:
        """Return what is known of the trainings of all members, and of a committee itself."""
        return [one.training_info for one in (self, *self.members)]

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
        """Cutoff [Å] of the longest pair term with a graph of its own; None without one."""
        ranges = [long_range_of(term) for term in self.all_pair_terms]
        return max((length for length in ranges if length is not None), default=None)

    @property
    def counts_all_pairs(self) -> bool:
        """Return True if a pair term has a separate form for molecules, which counts all pairs."""
        return any(of_all_pairs(term) is not None for term in self.all_pair_terms)

    @property
    def reads_system(self) -> bool:
        """Return True if a pair term reads positions and cells instead of a graph."""
        return any(reads_system(term) for term in self.all_pair_terms)

    def long_range_for(self, system: System) -> float | None:
        """Return `long_range` for these structures, Å.

        Raises:
            ValueError: there are molecules and periodic structures, which need different ranges.
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
        """Return the pair terms in their form for these structures."""
        terms: list[Any] = list(self._modules["pair_terms"]._modules.values())  # type: ignore[union-attr]
        if not graphs.all_pairs:
            return terms
        of_molecules = [one if (other := of_all_pairs(one)) is None else other for one in terms]
        return [term for term in of_molecules if not is_zero(term)]

    def set_long_range_cutoff(self, cutoff: float) -> None:
        """Set the cutoff of pair terms of longer range for all structures, in place.

        Energies of different cutoffs must not be compared.

        Args:
            cutoff: Å; `math.inf` counts all pairs, for molecules only.

        Raises:
            ValueError: `cutoff` is not a positive number, no pair term has a longer range, or the
                networks are compiled.
        """
        number: Any = cutoff  # also of numpy, which is not declared
        if isinstance(number, bool) or not isinstance(number, Real) or not float(number) > 0:
            raise ValueError(f"long_range_cutoff must be a positive number of Å, got {cutoff!r}")
        self._refuse_compiled("long_range_cutoff")
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
        """Device of the tensors."""
        return self.members[0].reference_energies.device

    @property
    def dtype(self) -> torch.dtype:
        """Least precise dtype of the networks; sums and pair terms are float64."""
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
        """Change the dtype of the networks, in place.

        Raises:
            ValueError: the networks are compiled.
        """
        self._refuse_compiled("dtype")
        for network in self.networks:
            network.to(dtype)

    def set_num_threads(self, threads: int) -> None:
        """Set the number of threads of a compiled network on a CPU for large structures.

        Results of equal numbers of threads are bitwise equal; others differ by rounding.

        Raises:
            ValueError: `threads` is not a whole number from 1 to `MOST_THREADS`, or the networks
                are compiled.
        """
        self._refuse_compiled("threads")
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

    def _refuse_compiled(self, what: str) -> None:
        compiled = (isinstance(network, CompiledNetwork) for network in self.networks)
        if any(compiled) or self.lowered_from is not self:
            raise ValueError(
                f"{what}: the networks of this potential are compiled already; set it in the one "
                "that it was made of, as calculator.evaluator.plain"
            )

    def energies(self, graph: Graph | Graphs) -> Tensor:
        """Return energies per atom [n_atoms] eV, float64, differentiable in the graph's vectors.

        For a committee this is the mean over its members.
        """
        graphs = graph if isinstance(graph, Graphs) else Graphs(graph)
        return torch.stack([member.predict(graphs)[0] for member in self.members]).mean(0)

    def predict(self, graphs: Graphs) -> tuple[Tensor, AtomOutputs]:
        """Return energies per atom [n_atoms] eV like `energies`, and the outputs of the network.

        Args:
            graphs: of the structures.

        Raises:
            AttributeError: this is a committee, which has several networks.
        """
        outputs = self.network(graphs.short)
        energies = self.to_eV(outputs.energies, graphs.short)
        for term in self.terms_for(graphs):
            energies = energies + energies_of(term, graphs, outputs)
        return energies, outputs

    def to_eV(self, energies: Tensor, graph: Graph) -> Tensor:
        """Convert the network's energies [n_atoms] to eV, float64, without pair terms."""
        scaled = self.scale[graph.species] * energies.to(self.scale.dtype)
        return scaled + self.reference_energies[graph.species]


def require_potential(given: object) -> None:
    """Refuse a name, a calculator or anything else that is no potential.

    Raises:
        TypeError: `given` is no `Potential`.
    """
    if not isinstance(given, Potential):
        raise TypeError(
            f"expected a Potential, got {type(given).__name__}: load(NAME) returns one, and "
            "calculator.potential is one"
        )


class Committee(Potential):
    """Mean of several potentials, with their spread as a measure of uncertainty.

    Networks that are trained on the same data from different random weights agree where the data
    determine the result and differ elsewhere. Their mean is closer to the truth than most of them.

    Args:
        members: two or more potentials of the same species, cutoff and baseline. A committee among
            them is replaced by its members.
        training: as for `Potential`.

    Raises:
        TypeError: a member is no `Potential`.
        ValueError: there are fewer than two members, they differ in species, cutoff or baseline,
            or one appears twice.
    """

    def __init__(
        self, members: Sequence[Potential], *, training: Mapping[str, Any] | None = None
    ) -> None:
        nn.Module.__init__(self)  # a committee has no network of its own
        for member in members:
            require_potential(member)
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
        if len(levels := {_level_of(member) for member in members} - {""}) > 1:
            warnings.warn(
                "members of the committee learnt different levels of theory "
                f"({', '.join(sorted(levels))}): mean and spread of their energies mean nothing",
                stacklevel=2,
            )
        self._modules["members"] = nn.ModuleList(members)  # the property of this name reads it
        self.species, self.threads = members[0].species, members[0].threads
        self.training_info = dict(training or {})


def _level_of(potential: Potential) -> str:
    """Return the first word of a level of theory: others say where the data are from."""
    level = str(potential.training_info.get("level_of_theory") or "")
    return re.split(r"[\s(,;:]", level, maxsplit=1)[0].casefold()


def evaluate(potential: Potential, graph: Graph | Graphs) -> Result:
    """Return energy, forces and strain gradient, from one gradient in the edge vectors.

    A committee takes one gradient per member, and its result has a spread.

    Args:
        potential: as loaded, or lowered by `attncalc.fast.lower`.
        graph: of the structures; `Graphs` if pair terms reach further than the network.

    Raises:
        RuntimeError: called under `torch.inference_mode()`.
        ValueError: a pair term needs a graph of longer range.
    """
    return _evaluate(potential, graph, waits=True)


def evaluate_with_virials(potential: Potential, graphs: Graphs) -> tuple[Result, Tensor]:
    """Return the result, as `evaluate`, and the virials of atoms, see `atom_virials`.

    For a committee both are means over its members.
    """
    each = [edge_gradients(one, graphs) for one in potential.members]
    results = [assemble(graphs, gradients) for gradients in each]
    virials = torch.stack([atom_virials(graphs, gradients) for gradients in each]).mean(0)
    return results[0] if len(results) == 1 else mean_of(results), virials


def evaluate_without_waiting(potential: Potential, graph: Graph | Graphs) -> Result:
    """Evaluate without reading anything back from a GPU, not even whether its engine succeeded.

    If two atoms of a system are closer than the engine's tables reach, energy and forces of this
    system are NaN: check the energies before the result is used.
    """
    return _evaluate(potential, graph, waits=False)


def _evaluate(potential: Potential, graph: Graph | Graphs, *, waits: bool) -> Result:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "torch.inference_mode() forbids gradients, which forces need: use torch.no_grad()"
        )
    graphs = graph if isinstance(graph, Graphs) else Graphs(graph)
    members = potential.members
    results = [
        assemble(graphs, edge_gradients(one, graphs, waits=waits, sums=True)) for one in members
    ]
    return results[0] if len(results) == 1 else mean_of(results)


@dataclass(frozen=True)
class EdgeGradients:
    """Energies of a potential, and the gradient of the counted energies by all edge vectors.

    All are tensors, or all are arrays on the CPU.

    Attributes:
        energies: [n_atoms] eV; zero for ghosts, except for divided pairs of longer range.
        short: [n_edges, 3] eV/Å, for the network's graph.
        long: [n_edges, 3] eV/Å, for the graph of longer range; None without one.
        others: outputs of the network other than energies, by name, float64.
        summed: gradients that pair terms have already summed over edges.
        surroundings: see `Result`.
    """

    energies: Any
    short: Any
    long: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)
    summed: Sequence[SummedGradient] = ()
    surroundings: NoveltyInputs | None = None

    @property
    def tensors(self) -> EdgeGradients:
        """The same gradients as tensors."""
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
    member: Potential,
    graphs: Graphs,
    *,
    waits: bool = True,
    sums: bool = False,
    weights: Tensor | None = None,
) -> EdgeGradients:
    """Return energies with scale, reference energies and pair terms, and their gradients by edges.

    If an engine's outputs are arrays, all results are arrays: a tensor costs as much as a loop over
    the atoms of a small molecule.

    Args:
        member: a single potential, not a committee.
        graphs: of the structures.
        waits: see `attncalc.nn.network.linearize`.
        sums: True: pair terms may sum their gradient over edges themselves, into `summed`.
        weights: [n_atoms], float64, of the atoms' energies in the sum whose gradient is taken;
            None: ones.
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
    d_outputs = {"energies": factor if weights is None else _times(factor, weights)}
    gradients: dict[bool, Any] = {False: None, True: None}
    summed: list[SummedGradient] = []
    for term in member.terms_for(graphs):
        long_range = long_range_of(term)
        is_long, n = long_range is not None, graphs.n_counted_of(long_range)
        found = _linearize_term(term, outputs, graphs, sums=sums, weights=weights)
        of_term, by_vectors, by_outputs = _in_arrays(found) if in_arrays else _in_tensors(found)
        counted = energies[:n]
        counted += of_term[:n]  # `energies[:n] +=` would copy them onto themselves after that
        if isinstance(by_vectors, SummedGradient):
            summed.append(by_vectors)
        elif by_vectors is not None:
            before = gradients[is_long]
            gradients[is_long] = by_vectors if before is None else before + by_vectors
        for name, value in by_outputs.items():
            d_outputs[name] = d_outputs[name] + value if name in d_outputs else value
    for name in others:
        if name not in d_outputs:  # no term reads it
            d_outputs[name] = 0 * factor
    if n_counted is not None:
        d_outputs["energies"] = _first(d_outputs["energies"], n_counted)
    if graphs.shared is not None:
        d_outputs |= graphs.shared.give_back({name: d_outputs[name] for name in others})
    given = OutputsOfArrays.of(OutputArrays(**d_outputs)) if in_arrays else AtomOutputs(**d_outputs)
    short = pull(given)
    if (of_terms := gradients[False]) is not None:
        short = short + of_terms
    return EdgeGradients(energies, short, gradients[True], others, summed, surroundings)


def _first(values: Any, n: int) -> Any:
    """Return a copy [n_atoms] with zeros for all atoms but the first n."""
    values = values + 0
    values[n:] = 0
    return values


def _times(factor: Any, weights: Tensor) -> Any:
    return factor * (weights if isinstance(factor, Tensor) else weights.numpy())


def _others(outputs: AtomOutputs) -> dict[str, Any]:
    """Return outputs other than energies, by name, float64; arrays if the outputs are arrays."""
    arrays = outputs.arrays
    if arrays is not None:
        if arrays.charges is None and arrays.hirshfeld_ratios is None:  # most models
            return {}
        return {
            name: value
            for name, value in zip(OUTPUTS[1:], arrays[1:], strict=True)
            if value is not None
        }
    named = {name: getattr(outputs, name) for name in OUTPUTS[1:]}
    return {name: value.double() for name, value in named.items() if value is not None}


def _in_arrays(found: LinearizedTerm) -> LinearizedTerm:
    if not isinstance(found.energies, Tensor):  # then all are arrays
        return found
    return _each(found, lambda value: value.numpy() if isinstance(value, Tensor) else value)


def _in_tensors(found: LinearizedTerm) -> LinearizedTerm:
    return _each(found, torch.as_tensor)


def _each(found: LinearizedTerm, change: Callable[[Any], Any]) -> LinearizedTerm:
    energies, by_vectors, by_outputs = found
    if isinstance(by_vectors, SummedGradient):
        by_vectors = SummedGradient(*map(change, by_vectors))
    elif by_vectors is not None:
        by_vectors = change(by_vectors)
    by_name = {name: change(value) for name, value in by_outputs.items()}
    return LinearizedTerm(change(energies), by_vectors, by_name)


def _surroundings(member: Potential, outputs: AtomOutputs, graph: Graph) -> NoveltyInputs | None:
    environments = member.environments
    if environments is None:
        return None
    features: Any = getattr(outputs, "feature_array", None)
    if features is None:
        features = outputs.features
    network = member._modules["network"]  # faster than an attribute
    plain = getattr(network, "network", network) if features is None else None
    return NoveltyInputs(environments, features, graph, plain)


class _ScaleArrays:
    """Scale and reference energies of a compiled potential, which do not change, as arrays."""

    def __init__(self, scale: Tensor, reference: Tensor) -> None:
        self.tensors = scale, reference
        self.scale, self.reference = scale.numpy(), reference.numpy()
        self._last: tuple[Any, Any, Any] = (None, None, None)

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the potential has memory of its own

    @classmethod
    def of(cls, member: Potential) -> _ScaleArrays:
        """Return the arrays of last time, unless the tensors have been replaced."""
        buffers = member._buffers  # faster than attributes, and this is done at every step
        scale, reference = buffers["scale"], buffers["reference_energies"]
        last: _ScaleArrays | None = member.__dict__.get("_scale_arrays")
        if last is None or last.tensors[0] is not scale or last.tensors[1] is not reference:
            assert scale is not None
            assert reference is not None
            last = member.__dict__["_scale_arrays"] = cls(scale, reference)
        return last

    def of_atoms(self, species: NDArray[np.int64]) -> tuple[Any, Any]:
        """Return scale and reference energy of every atom, not to be changed.

        In a simulation `species` is the same array at every step.
        """
        last = self._last  # read once: another thread may replace it meanwhile
        if last[0] is not species:
            self._last = last = (species, self.scale[species], self.reference[species])
        return last[1], last[2]


def _scaled_arrays(member: Potential, outputs: AtomOutputs, graph: Graph) -> tuple[Any, Any]:
    """Return scale and energies like `_scaled`, as arrays, in a third of the time."""
    factor, reference = _ScaleArrays.of(member).of_atoms(graph.arrays.species)
    found = outputs.arrays
    assert found is not None
    return factor, factor * found.energies + reference


def _scaled(member: Potential, outputs: AtomOutputs, graph: Graph) -> tuple[Any, Any]:
    """Return the scale of every atom, and energies in eV, both [n_atoms] and float64."""
    factor = member.scale.index_select(0, graph.species)
    of_species = member.reference_energies.index_select(0, graph.species)
    return factor, torch.addcmul(of_species, factor, outputs.energies.to(factor.dtype))


def _linearize_term(
    term: Any, outputs: AtomOutputs, graphs: Graphs, *, sums: bool, weights: Tensor | None
) -> LinearizedTerm:
    """Return energies [n_atoms] of a pair term, and gradients of the sum by vectors and outputs."""
    if reads_system(term):
        return _linearize_by_strain(term, outputs, graphs, sums=sums and weights is None)
    long_range = long_range_of(term)
    graph, n_counted = graphs.of_range(long_range), graphs.n_counted_of(long_range)
    if n_counted is None and weights is None and hasattr(term, "linearize"):  # in closed form
        found: LinearizedTerm | None = term.linearize(graph, outputs)
        if found is not None and (sums or not isinstance(found.by_vectors, SummedGradient)):
            return found
    vectors = graph.vectors.detach().requires_grad_(True)
    given = _to_differentiate_by(outputs, OUTPUTS)
    with torch.enable_grad():
        energies = term(graph.with_vectors(vectors), AtomOutputs(**given))
        weighted = energies if weights is None else weights * energies
        total = weighted[:n_counted].sum()
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
    """Linearize a term that reads positions and cells, by positions and strain."""
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
    """Sum energies per system, and edge gradients to forces and strain gradients.

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
    kernels = _sum_kernels(energies.device) if energies.device.type == "cuda" else None
    sum_over_edges = _sum_over_edges if kernels is None else kernels.sum_over_edges
    summed = [sum_over_edges(edges, gradient) for edges, gradient in parts]
    for more in gradients.summed:
        summed.append(SummedGradient(*map(torch.as_tensor, more)))
    forces, strain_gradient = (
        functools.reduce(operator.add, each) for each in zip(*summed, strict=True)
    )
    return Result(
        *(energy, energies, forces, strain_gradient),
        **gradients.others,
        surroundings=gradients.surroundings,
    )


def _sum_over_edges(graph: Graph, gradient: Tensor) -> SummedGradient:
    # reproducible on a GPU: `index_put` sorts before it adds, `index_add` adds in any order
    atoms = torch.cat([graph.receivers, graph.senders])
    forces = gradient.new_zeros(graph.n_atoms, 3)
    forces = forces.index_put((atoms,), torch.cat([gradient, -gradient]), accumulate=True)
    return SummedGradient(forces, _strain_gradient(graph, gradient))


@functools.cache
def _sum_kernels(device: torch.device) -> Any | None:
    """Return `kernels.gpu.sums`; None if it does not run."""

    def trial(kernels: Any) -> None:
        # the comparison before the first step has these sums on both sides; the first atom has more
        # edges than a block, and the list ends with padding
        n, padding = 40, 8
        ends = torch.arange(1, n, device=device)
        receivers = torch.cat([0 * ends, ends, ends[-1].expand(padding)])
        senders = torch.cat([ends, 0 * ends, ends[-1].expand(padding)])
        mask = torch.arange(len(receivers), device=device) < 2 * len(ends)
        vectors = torch.arange(3.0 * len(receivers), dtype=torch.float64, device=device)
        vectors = vectors.sin().view(-1, 3)
        gradient = torch.where(mask.unsqueeze(1), vectors.flip(0), 0.0)
        zero = torch.zeros(n, dtype=torch.int64, device=device)
        charge, spin = vectors.new_zeros(1), zero[:1] + 1
        graph = Graph(vectors, receivers, senders, mask, ends, zero, zero, charge, spin)
        found = kernels.sum_over_edges(graph, gradient)
        for ours, expected in zip(found, _sum_over_edges(graph, gradient), strict=True):
            if not torch.allclose(ours, torch.as_tensor(expected), rtol=0, atol=1e-9):
                raise ValueError("its sums are wrong")

    return gpu_kernels("attncalc.kernels.gpu.sums", trial)


def atom_virials(graphs: Graphs, gradients: EdgeGradients) -> Tensor:
    """Return virials of atoms [n_atoms, 3, 3] eV, which add up to the strain gradient.

    Each edge gives half of vector (x) gradient, symmetrized, to each of its two atoms. The division
    is not unique: only sums over many atoms are independent of it. In particular it does not give
    the heat flux of a network with several layers; `attncalc.heat_flux` does.
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
    n_systems, system_idx = graph.n_systems, graph.arrays.system_idx
    loop = cpu_loops("attncalc.kernels.assemble_loop").assemble
    forces, strain_gradient = np.zeros((len(energies), 3)), np.zeros((n_systems, 3, 3))
    for edges, gradient in parts:
        vectors, receivers, senders, *_ = edges.arrays
        loop(vectors, receivers, senders, gradient, system_idx, forces, strain_gradient)
    for more in gradients.summed:
        forces += np.asarray(more.forces)
        strain_gradient += np.asarray(more.strain_gradient)
    # adds in the order of the atoms like `segment_sum`, but several times faster
    energy = np.bincount(system_idx, energies, minlength=n_systems)
    others = {name: np.asarray(value) for name, value in gradients.others.items()}
    arrays = ResultArrays(energy, energies, forces, strain_gradient, **others)
    return ResultOfArrays.of(arrays, surroundings=gradients.surroundings)


def _same_weights(one: Potential, other: Potential) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name])
        for name in ours
    )


def forces_from_edges(gradient: Tensor, receivers: Tensor, senders: Tensor, n_atoms: int) -> Tensor:
    """Return forces [n_atoms, 3] from dE / d vectors [n_edges, 3]."""
    forces = gradient.new_zeros(n_atoms, 3).index_add(0, receivers, gradient)
    return forces.index_add(0, senders, -gradient)


def _strain_gradient(graph: Graph, gradient: Tensor) -> Tensor:
    if graph.n_systems == 1:
        strain_gradient = (graph.vectors.T @ gradient).unsqueeze(0)
    else:
        outer = graph.vectors.unsqueeze(2) * gradient.unsqueeze(1)
        strain_gradient = segment_sum(outer, graph.system_idx[graph.receivers], graph.n_systems)
    # rotational invariance makes it symmetric; averaging removes rounding errors
    return (strain_gradient + strain_gradient.transpose(1, 2)) / 2


def _per_species(values: Sequence[float] | None, default: float, n_species: int) -> Tensor:
    if values is None:
        return torch.full((n_species,), default, dtype=torch.float64)
    tensor = torch.as_tensor(values, dtype=torch.float64).clone()
    if tensor.shape != (n_species,):
        raise ValueError(f"one value per species ({n_species}) needed, got {list(tensor.shape)}")
    return tensor
