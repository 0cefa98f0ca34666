"""So3krates: the contract, the published numbers, and a slow second program to compare with."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import (
    ELEMENTS,
    EmbedsElectrons,
    NetworkContract,
    assert_close,
    build_graph,
    edges_of,
    ethanol,
    graph_of_edges,
    random_potential,
    result_of,
    triclinic,
    without_electrons,
)
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu, softplus

from attncalc.convert import so3krates
from attncalc.graph import Graph
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import Potential, evaluate
from attncalc.system import System

# smaller than shipped models in width only; 3.5 Å keeps the ghost clusters small
SMALL = {"cutoff": 3.5, "avg_num_neighbors": 8.0, "num_features": 24, "num_basis": 8}
DEFAULT = So3kratesConfig(**SMALL, head_features=12)
PAPER = So3kratesConfig(
    **SMALL,
    degrees=(1, 2, 3),
    radial_basis="physnet",
    cutoff_function="cosine",
    attention_norm="sqrt_head_width",
    layer_norms=(),
    mlp_after_attention="none",
    head_features=24,
)
SPARSE = So3kratesConfig(  # SO3LR's kind: embeddings of charge and spin
    **SMALL, degrees=(1, 2, 3), cutoff_function="exponential", embed_charge=True, embed_spin=True
)
FIRST_RELEASE = So3kratesConfig(
    **SMALL,
    degrees=(0, 1),
    num_layers=2,
    layer_norms=("before_attention", "before_exchange"),
    mlp_after_attention="projected",
    mlp_after_exchange="projected",
    ev_init_divisor=2.0,
)
CONFIGS = {"default": DEFAULT, "paper": PAPER, "sparse": SPARSE, "first_release": FIRST_RELEASE}


class TestContract(NetworkContract):
    @pytest.fixture(params=list(CONFIGS))
    def potential(self, request: pytest.FixtureRequest) -> Potential:
        return random_potential(CONFIGS[request.param])

    def smooth_slope(self, potential: Potential) -> bool:
        return potential.network.config.cutoff_function != "cosine"


class TestElectrons(EmbedsElectrons):
    @pytest.fixture
    def potential(self) -> Potential:
        return random_potential(SPARSE)

    def test_no_electrons_embed_to_exactly_zero(self, potential: Potential) -> None:
        embedded = list(without_electrons(potential, System.from_ase([ethanol(), Atoms("O")])))
        assert len(embedded) == 2
        assert not any(part.any() for part in embedded)

    def test_shares_of_a_charge_add_up(self, potential: Potential) -> None:
        """a_i = Q y_i / sum y: seen in front of the residual map, which alone is not linear."""
        embed = potential.network.embedding.charge
        seen = []
        handle = embed.refine.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for charge in (2, -1):
            atoms = ethanol()
            atoms.info["charge"] = charge
            result_of(potential, atoms)
            assert_close(
                seen.pop().sum(0), charge * embed.value[int(charge < 0)], 1e-13, f"charge {charge}"
            )
        handle.remove()


# ------------------------------------------------------------- the published code's own numbers

REFERENCES = {
    "euclidean_default": ("ethanol", "aspirin"),
    "euclidean_options": ("ethanol",),
    "sparse_options": ("ethanol", "acetate_water"),
}
CASES = [(weights, name) for weights, names in REFERENCES.items() for name in names]
PARITY = 1e-10  # of the largest reference value; both sides are float64


def converted(shared: Path, weights: str) -> Potential:
    base = shared / "reference" / "so3krates" / weights
    return so3krates(f"{base}_params.npz", f"{base}_hyperparameters.json")


def charge_of(reference: dict[str, np.ndarray]) -> int:
    return int(reference["total_charge"]) if "total_charge" in reference else 0


def assert_parity(actual: object, expected: np.ndarray, what: str) -> None:
    """Unlike `assert_close` relative to the largest value even where that is below 1."""
    scale = float(np.abs(expected).max())
    assert_close(np.asarray(actual) / scale, expected / scale, PARITY, what)


@pytest.mark.parametrize(("weights", "name"), CASES)
def test_energy_and_forces_of_the_published_code(shared: Path, weights: str, name: str) -> None:
    potential = converted(shared, weights)
    reference = np.load(shared / "reference" / "so3krates" / f"{weights}_{name}.npz")
    atoms = Atoms(reference["numbers"], positions=reference["positions"])
    atoms.info["charge"] = charge_of(reference)
    stored = stored_graph(potential, reference)
    listed = build_graph(potential, System.from_ase(atoms))
    assert listed.n_edges == stored.n_edges
    padded = build_graph(potential, System.from_ase(atoms), skin=1.5, capacity=64)
    for graph in (stored, listed, padded):
        result = evaluate(potential, graph)
        assert_parity(result.energy[0], reference["energy"], "energy")
        assert_parity(result.forces, reference["forces"], "forces")


def stored_graph(potential: Potential, reference: dict[str, np.ndarray]) -> Graph:
    prefix = "int_" if "int_edges_receiver_i" in reference else ""
    return graph_of_edges(
        reference["numbers"],
        reference["positions"],
        reference[f"{prefix}edges_receiver_i"],
        reference[f"{prefix}edges_sender_j"],
        potential.species,
        charge_of(reference),
    )


def trace(network: So3krates, graph: Graph) -> dict[str, np.ndarray]:
    """Intermediates under the reference's names; edge quantities [2 P], pairs, then reversed."""
    both = ("feature", "geometric")
    seen: dict[str, Tensor] = {}
    geometry = network.geometry(graph)
    vectors = graph.vectors[graph.pairs]
    lengths = vectors.norm(dim=1)
    seen["geometry_r_ij"] = torch.cat([vectors, -vectors])
    seen["geometry_unit_r_ij"] = seen["geometry_r_ij"] / lengths.repeat(2).unsqueeze(1)
    seen["geometry_d_ij"] = lengths.repeat(2)
    seen["geometry_phi_r_cut"] = geometry.envelope.squeeze(1).repeat(2)
    seen["geometry_rbf_ij"] = network.radial.basis(lengths).repeat(2, 1)
    seen["geometry_sph_ij"] = torch.cat([d.harmonics for d in geometry.directions])
    ev = network.initial_ev(geometry, graph.n_atoms)
    n_components = len(network.parity)
    seen["geometry_chi"] = torch.zeros(graph.n_atoms, n_components) if ev is None else ev
    handles = [
        network.embedding.register_forward_hook(lambda _, __, out: seen.update(embedding_x=out))
    ]

    def watch(n: int, layer: torch.nn.Module) -> None:
        def attention(block: torch.nn.Module, inputs: tuple, outputs: tuple) -> None:
            features, ev, geometry = inputs
            queries, keys, _ = block.project(features)
            filters = block.filters(ev, geometry)
            of_directions = [
                block.coefficients(queries, keys, filters, geometry.envelope, direction)
                for direction in geometry.directions
            ]
            alphas = map(torch.cat, zip(*of_directions, strict=True))
            for kind, of_pairs, alpha in zip(both, filters, alphas, strict=True):
                pairs = of_pairs.expand(len(geometry.envelope), -1)
                seen[f"l{n}_filter_{kind}"] = pairs.repeat(2, 1)
                seen[f"l{n}_alpha_{kind}"] = alpha
            seen[f"l{n}_dx_attention"], seen[f"l{n}_dchi_attention"] = outputs

        def exchange(_: torch.nn.Module, __: tuple, outputs: tuple) -> None:
            seen[f"l{n}_dx_interaction"], seen[f"l{n}_dchi_interaction"] = outputs

        def whole(_: torch.nn.Module, __: tuple, outputs: tuple) -> None:
            seen[f"l{n}_x_out"], seen[f"l{n}_chi_out"] = outputs

        handles.append(layer.attention.register_forward_hook(attention))
        handles.append(layer.exchange.register_forward_hook(exchange))
        handles.append(layer.register_forward_hook(whole))

    for n, layer in enumerate(network.layers):
        watch(n, layer)
    network(graph)
    for handle in handles:
        handle.remove()
    return {name: value.detach().numpy() for name, value in seen.items()}


def to_listed_edges(graph: Graph) -> np.ndarray:
    """Row among the [2 P] directed edges of `trace` for every edge of a molecule's graph."""
    i, j = graph.receivers[graph.pairs].tolist(), graph.senders[graph.pairs].tolist()
    row = {edge: n for n, edge in enumerate([*zip(i, j, strict=True), *zip(j, i, strict=True)])}
    listed = zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True)
    return np.array([row[edge] for edge in listed])


@pytest.mark.parametrize(("weights", "name"), [c for c in CASES if c[0] != "sparse_options"])
def test_intermediates_of_the_published_code(shared: Path, weights: str, name: str) -> None:
    potential = converted(shared, weights)
    reference = np.load(shared / "reference" / "so3krates" / f"{weights}_{name}.npz")
    graph = stored_graph(potential, reference)
    seen, listed = trace(potential.network, graph), to_listed_edges(graph)
    compared = [key for key in reference.files if key.startswith("int_")]
    assert len(compared) == 28
    for key in compared:
        actual = seen[key.removeprefix("int_")]
        if len(actual) == graph.n_edges:
            actual = actual[listed]
        if reference[key].any():
            assert_parity(actual, reference[key], key)
        else:
            assert key == "int_geometry_chi"
            assert not actual.any()


SO3LR_ONLY = ("observables_0/electrostatic_energy/", "observables_2/")  # terms of other files


@pytest.fixture(scope="module")
def so3lr_network(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Potential:
    """SO3LR without its charges and Hirshfeld ratios: its network and nuclear repulsion."""
    folder, base = tmp_path_factory.mktemp("so3lr"), shared / "reference" / "so3lr"
    arrays = dict(np.load(base / "so3lr_params.npz"))
    np.savez(
        folder / "params.npz", **{k: v for k, v in arrays.items() if not k.startswith(SO3LR_ONLY)}
    )
    published = json.loads((base / "so3lr_hyperparameters.json").read_text())
    long_range = ("electrostatic", "dispersion", "cutoff_lr")
    options = {k: v for k, v in published["model"].items() if not k.startswith(long_range)}
    options |= {"form": "euclidean_sparse", "avg_num_neighbors": published["avg_num_neighbors"]}
    (folder / "config.json").write_text(json.dumps(options))
    return so3krates(folder / "params.npz", folder / "config.json")


@pytest.mark.parametrize("name", ["ethanol", "aspirin", "ammonium", "acetate_water"])
def test_network_of_so3lr(shared: Path, so3lr_network: Potential, name: str) -> None:
    reference = np.load(shared / "reference" / "so3lr" / f"{name}.npz")
    graph = stored_graph(so3lr_network, reference)
    assert int(reference["multiplicity"]) == 1
    seen, listed = trace(so3lr_network.network, graph), to_listed_edges(graph)
    names = {"int_cut": "phi_r_cut", "int_rbf_ij": "rbf_ij", "int_ylm_ij": "sph_ij"}
    for theirs, ours in names.items():
        assert_parity(seen[f"geometry_{ours}"][listed], reference[theirs], theirs)
    embedded = [reference[f"int_embed_{k}"] for k in ("species", "charge", "spin")]
    assert_parity(seen["embedding_x"], sum(embedded) / math.sqrt(3), "embedding")
    parts = {
        "att_dx": "dx_attention",
        "att_dev": "dchi_attention",
        "exch_dx": "dx_interaction",
        "exch_dev": "dchi_interaction",
        "x": "x_out",
        "ev": "chi_out",
    }
    for n in range(3):
        for theirs, ours in parts.items():
            assert_parity(
                seen[f"l{n}_{ours}"], reference[f"int_layer{n}_{theirs}"], f"{n} {theirs}"
            )
    energy = reference["lr12_energy_network"] + reference["lr12_energy_zbl"]
    assert_parity(evaluate(so3lr_network, graph).energy[0], energy, "energy")


# ---------------------------------------------------- a second program: edge by edge, no tricks


def plain_energies(
    config: So3kratesConfig,
    p: dict[str, Tensor],
    species: list[int],
    edges: list[tuple[int, int, Tensor]],
    charge: float = 0.0,
    unpaired: float = 0.0,
) -> Tensor:
    """[n_atoms] straight from so3krates.md, one directed edge (i, j, vector) at a time."""
    width, heads, degrees = config.num_features, config.num_heads, config.degrees
    n_atoms, n_degrees = len(species), len(degrees)
    of_degree, start = [], 0
    for l in degrees:
        of_degree.append(slice(start, start + 2 * l + 1))
        start += 2 * l + 1

    def invariants(chi: Tensor) -> Tensor:
        parts = [
            (chi[s] ** 2).sum() / math.sqrt(2 * l + 1)
            for s, l in zip(of_degree, degrees, strict=True)
        ]
        return torch.stack(parts)

    def envelope(d: Tensor) -> Tensor:
        s = d / config.cutoff
        return {
            "physnet": lambda: 1 - 6 * s**5 + 15 * s**4 - 10 * s**3,
            "cosine": lambda: (1 + torch.cos(math.pi * s)) / 2,
            "exponential": lambda: torch.exp(-(s**2) / ((1 - s) * (1 + s))),
        }[config.cutoff_function]()

    def basis(d: Tensor) -> Tensor:
        size = config.num_basis
        if config.radial_basis == "physnet":
            end = math.exp(-config.cutoff)
            beta = ((2 / size) * (1 - end)) ** -2
            centres = [end + (1 - end) * k / (size - 1) for k in range(size)]
            return torch.stack([torch.exp(-beta * (torch.exp(-d) - mu) ** 2) for mu in centres])
        t = torch.exp(-0.9448630809783936 * d)
        n = size - 1
        return torch.stack([math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(size)])

    def harmonics(u: Tensor) -> Tensor:
        turned = torch.stack([u[1], u[2], u[0]])
        parts = [o3.spherical_harmonics(l, turned, False, "component") for l in degrees]
        return torch.cat(parts) / math.sqrt(4 * math.pi)

    def norm(x: Tensor, name: str) -> Tensor:
        if name + ".scale" not in p:
            return x
        centred = x - x.mean()
        return (
            centred / torch.sqrt((centred**2).mean() + 1e-6) * p[name + ".scale"]
            + p[name + ".bias"]
        )

    def refine(x: Tensor, name: str, kind: str) -> Tensor:
        if kind == "none":
            return x
        if kind == "residual":
            hidden = silu(silu(x) @ p[name + ".first.weight"] + p[name + ".first.bias"])
            return x + hidden @ p[name + ".second.weight"] + p[name + ".second.bias"]
        inner = silu(silu(x) @ p[name + ".residual.first.weight"])
        inner = x + inner @ p[name + ".residual.second.weight"]
        return silu(inner) @ p[name + ".last.weight"]

    def twin(inputs: Tensor, name: str, kind: int) -> Tensor:
        first, second = p[name + ".first"], p[name + ".second"]
        size = first.shape[1] // 2
        mine = slice(kind * size, (kind + 1) * size)
        hidden = silu(inputs @ first[:, mine] + p[name + ".first_bias"][mine])
        return hidden @ second[kind] + p[name + ".second_bias"][kind, 0]

    def attention(
        q_x: Tensor, k_x: Tensor, w: Tensor, projection: Tensor, d: Tensor
    ) -> list[Tensor]:
        count = projection.shape[0]
        size = width // count
        if config.attention_norm == "sqrt_head_width":
            divisor = math.sqrt(size)
        else:
            divisor = config.avg_num_neighbors
        act = silu if config.qk_activation == "silu" else (lambda y: y)
        alphas = []
        for h in range(count):
            mine = slice(h * size, (h + 1) * size)
            q = act(q_x[mine] @ projection[h][:, :size])
            k = act(k_x[mine] @ projection[h][:, size : 2 * size])
            alphas.append(envelope(d) / divisor * (q * w[mine] * k).sum())
        return alphas

    def electrons(psi: float, name: str) -> list[Tensor]:
        s = 0 if psi >= 0 else 1
        query, key, value = (p[f"embedding.{name}.{k}"] for k in ("query", "key", "value"))
        y = [softplus((query[z] * key[s]).sum() / math.sqrt(width)) for z in species]
        parts = [psi * y_i / sum(y) * value[s] for y_i in y]
        first, second = (p[f"embedding.{name}.refine.{k}.weight"] for k in ("first", "second"))
        return [v + silu(silu(v) @ first) @ second for v in parts]

    x = [p["embedding.element"][z] for z in species]
    extra = []
    if config.embed_charge:
        extra.append(electrons(charge, "charge"))
    if config.embed_spin:
        extra.append(electrons(unpaired, "spin"))
    for parts in extra:
        x = [a + b for a, b in zip(x, parts, strict=True)]
    x = [a / math.sqrt(1 + len(extra)) for a in x]

    chi = [torch.zeros(start, dtype=torch.float64) for _ in species]
    if config.ev_init_divisor is not None:
        for i, _, r in edges:
            d = r.norm()
            chi[i] = chi[i] + envelope(d) * harmonics(r / d) / config.ev_init_divisor

    for n in range(config.num_layers):
        at = f"layers.{n}."
        hat = [norm(a, at + "norm_before_attention") for a in x]
        dx = [torch.zeros(width, dtype=torch.float64) for _ in species]
        dchi = [torch.zeros(start, dtype=torch.float64) for _ in species]
        f, g = p[at + "attention.feature_projection"], p[at + "attention.geometry_projection"]
        for i, j, r in edges:
            d = r.norm()
            phi, inv = basis(d), invariants(chi[j] - chi[i])
            w = [
                twin(phi, at + "attention.radial_mlp", kind)
                + twin(inv, at + "attention.spherical_mlp", kind)
                for kind in (0, 1)
            ]
            size = width // heads
            sent = [hat[j][h * size : (h + 1) * size] @ f[h][:, 2 * size :] for h in range(heads)]
            alphas = attention(hat[i], hat[j], w[0], f, d)
            dx[i] = dx[i] + torch.cat([a * v for a, v in zip(alphas, sent, strict=True)])
            alphas = attention(hat[i], hat[j], w[1], g, d)
            y = harmonics(r / d)
            dchi[i] = dchi[i] + torch.cat(
                [a * y[s] for a, s in zip(alphas, of_degree, strict=True)]
            )
        for i in range(n_atoms):
            x[i] = norm(x[i] + dx[i], at + "norm_after_attention")
            chi[i] = chi[i] + dchi[i]
            x[i] = refine(x[i], at + "mlp_after_attention", config.mlp_after_attention)
            joined = torch.cat([norm(x[i], at + "norm_before_exchange"), invariants(chi[i])])
            out = joined @ p[at + "exchange.linear.weight"] + p[at + "exchange.linear.bias"]
            x[i] = refine(x[i] + out[:width], at + "mlp_after_exchange", config.mlp_after_exchange)
            x[i] = norm(x[i], at + "norm_after_exchange")
            b = out[width:]
            assert len(b) == n_degrees
            chi[i] = torch.cat([(1 + b[k]) * chi[i][s] for k, s in enumerate(of_degree)])

    energies = []
    for a in x:
        if config.head_features is not None:
            a = a @ p["head.hidden.weight"] + p["head.hidden.bias"]
            a = silu(a) if config.head_activation == "silu" else a
        energies.append((a @ p["head.energy.weight"] + p["head.energy.bias"])[0])
    return torch.stack(energies)


def assert_equals_plain(config: So3kratesConfig, atoms: Atoms) -> None:
    potential = random_potential(config, seed=5)
    system = System.from_ase(atoms)
    graph = build_graph(potential, system)
    i, j, vectors = edges_of(atoms, config.cutoff)
    rows = torch.from_numpy(vectors).requires_grad_(True)
    energies = plain_energies(
        config,
        potential.network.state_dict(),
        graph.species.tolist(),
        [(int(a), int(b), rows[e]) for e, (a, b) in enumerate(zip(i, j, strict=True))],
        float(system.charge[0]),
        float(system.spin[0] - 1),
    )
    (gradient,) = torch.autograd.grad(energies.sum(), rows)
    forces = torch.zeros(len(atoms), 3, dtype=torch.float64)
    for e in range(len(i)):
        forces[i[e]] += gradient[e]
        forces[j[e]] -= gradient[e]
    result = evaluate(potential, graph)
    assert_close(result.energies, energies, 1e-12, "energies")
    assert_close(result.forces, forces, 1e-12, "forces")


TINY = So3kratesConfig(
    cutoff=2.6,
    avg_num_neighbors=4.0,
    num_features=12,
    num_heads=2,
    degrees=(1, 2),
    num_layers=2,
    num_basis=5,
    head_features=6,
)
OPTIONS = {
    "radial_basis": ("physnet", "bernstein"),
    "cutoff_function": ("physnet", "cosine", "exponential"),
    "attention_norm": ("avg_num_neighbors", "sqrt_head_width"),
    "qk_activation": ("identity", "silu"),
    "layer_norms": (
        (),
        ("before_attention",),
        ("before_exchange",),
        ("after_attention",),
        ("after_exchange",),
        ("before_attention", "before_exchange", "after_attention", "after_exchange"),
    ),
    "mlp_after_attention": ("none", "residual", "projected"),
    "mlp_after_exchange": ("none", "residual", "projected"),
    "ev_init_divisor": (None, 1.0, 3.5),
    "embed_charge": (False, True),
    "embed_spin": (False, True),
    "head_features": (None, 6),
    "head_activation": ("silu", "identity"),
    "degrees": ((1,), (0, 1), (1, 2, 3), (2, 4)),
    "num_heads": (1, 4),
    "num_layers": (1, 3),
}
ONE_AT_A_TIME = [(name, value) for name, values in OPTIONS.items() for value in values]


def radical_anion() -> Atoms:
    """Charge -1, so one unpaired electron; not all atoms see each other."""
    positions = [[0, 0, 0], [1.2, 0.1, -0.2], [1.8, 1.2, 0.4], [-0.5, 0.9, 0.1]]
    return Atoms("CNHH", positions=positions, info={"charge": -1})


@pytest.mark.parametrize(("name", "value"), ONE_AT_A_TIME)
def test_equals_the_plain_program_for_every_option(name: str, value: object) -> None:
    assert_equals_plain(dataclasses.replace(TINY, **{name: value}), radical_anion())


@settings(max_examples=15)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONS.items()}))
def test_equals_the_plain_program_for_combined_options(options: dict) -> None:
    assert_equals_plain(dataclasses.replace(TINY, **options), radical_anion())


def test_equals_the_plain_program_in_a_periodic_cell() -> None:
    cell = triclinic()
    cell.positions += 0.01
    assert_equals_plain(dataclasses.replace(TINY, cutoff=2.9), cell)


def test_options_change_the_energy() -> None:
    """None of them is read and ignored: the comparison above would not notice on both sides."""
    # an activation of the head needs a hidden layer, which TINY has; these leave parameters alone
    base = random_potential(TINY, seed=5)
    state = base.network.state_dict()
    expected = result_of(base, radical_anion()).energy
    for name, value in (
        ("radial_basis", "physnet"),
        ("cutoff_function", "cosine"),
        ("cutoff_function", "exponential"),
        ("attention_norm", "sqrt_head_width"),
        ("qk_activation", "silu"),
        ("ev_init_divisor", 3.0),
        ("head_activation", "identity"),
        ("cutoff", 2.7),
        ("avg_num_neighbors", 5.0),
    ):
        network = So3krates(dataclasses.replace(TINY, **{name: value}), len(ELEMENTS)).double()
        network.load_state_dict(state)
        energy = result_of(Potential(network, ELEMENTS), radical_anion()).energy
        assert abs(float(energy - expected)) > 1e-5, name


# --------------------------------------------------------------------------------- size, config


def test_number_of_parameters_of_the_paper() -> None:
    config = So3kratesConfig(
        cutoff=5.0,
        avg_num_neighbors=1.0,
        num_features=132,
        degrees=(1, 2, 3),
        layer_norms=(),
        mlp_after_attention="none",
        head_features=132,
    )
    network = So3krates(config, 100)  # the published table has 100 rows
    parts = (network.embedding, network.layers, network.head, network)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [13_200, 3 * 96_108, 17_689, 319_213]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoff": 0.0}, "cutoff must be positive, got 0.0"),
        ({"cutoff": math.nan}, "cutoff must be positive, got nan"),
        ({"avg_num_neighbors": -1.0}, "avg_num_neighbors must be positive"),
        ({"degrees": ()}, "degrees must be ascending and not empty"),
        ({"degrees": (2, 1)}, "degrees must be ascending"),
        ({"degrees": (1, 1)}, "degrees must be ascending"),
        ({"degrees": (-1, 1)}, "degrees must be at least 0, got -1"),
        ({"num_heads": 5}, "divisible by num_heads = 5, got 12"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"degrees": (0, 1, 2, 3, 4)}, r"divisible by len\(degrees\) = 5, got 12"),
        ({"radial_basis": "gaussian"}, "radial_basis must be one of 'physnet', 'bernstein'"),
        ({"cutoff_function": "step"}, "cutoff_function must be one of"),
        ({"attention_norm": "softmax"}, "attention_norm must be one of"),
        ({"qk_activation": "relu"}, "qk_activation must be one of"),
        ({"head_activation": "relu"}, "head_activation must be one of"),
        ({"mlp_after_attention": "yes"}, "mlp_after_attention must be one of"),
        ({"mlp_after_exchange": "yes"}, "mlp_after_exchange must be one of"),
        ({"layer_norms": ("everywhere",)}, "layer_norms must be one of"),
    ],
)
def test_config_refuses_what_has_no_meaning(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_constants_survive_changes_of_dtype() -> None:
    network = copy.deepcopy(random_potential(PAPER).network)
    once = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.float()
    assert all(b.dtype == torch.float32 for b in network.buffers())
    network.double()
    assert once
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, once[name]), name
