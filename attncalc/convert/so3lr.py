"""Importer of SO3LR as published: its two files to a `Potential`.

Kabylda, Frank, Suárez-Dou, Khabibrakhmanov, Medrano Sandonas, Unke, Chmiela, Müller, Tkatchenko,
J. Am. Chem. Soc. 147, 33723 (2025): a So3krates network with nuclear repulsion, electrostatics of
its partial charges and dispersion from its Hirshfeld volume ratios. Input is the authors'
params.pkl, which is read without unpickling, or an .npz of the same tree (names joined by "/"), and
their hyperparameters.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from attncalc.convert.inputs import LARGEST_WEIGHTS, Options, Tree, fill, read_options
from attncalc.convert.pickled_arrays import read_pickled_arrays
from attncalc.convert.so3krates import dense, from_sparse, read_npz
from attncalc.nn.so3krates import So3krates
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.potential import Potential

PERIODIC_CUTOFF = 12.0  # Å, the authors' default
UNTRAINED = 1.0  # scale of elements that were not in the training data: the initial value

INFO = {
    "model": "SO3LR",
    "level_of_theory": "PBE0+MBD forces, dipoles and Hirshfeld ratios; not energies",
    "comparable": (
        "energies of structures of equal composition, total charge, multiplicity and long-range "
        "cutoff"
    ),
    "long_range_cutoff": (
        f"{PERIODIC_CUTOFF:g} Å for periodic structures; all pairs of molecules, without a cutoff"
    ),
    "citation": "J. Am. Chem. Soc. 147, 33723 (2025), doi 10.1021/jacs.5c09558",
    "citation_of_the_network": "Nat. Commun. 15, 6539 (2024), doi 10.1038/s41467-024-50620-6",
    "licence_of_the_weights": "MIT, (c) 2024 Thorben Frank",
}


def so3lr(
    params: str | Path, config: str | Path, *, species: Sequence[int] | None = None
) -> Potential:
    """Convert SO3LR, or a potential that was trained by its code with the same terms.

    Long-range terms end at 12 Å in periodic structures and include all pairs of molecules;
    `Potential.set_long_range_cutoff` changes this. The mean energy of the training data in the
    hyper-parameters is not added, because the authors' calculator does not add it either.

    Args:
        params: the authors' params.pkl, or an .npz of its arrays.
        config: their hyperparameters.json.
        species: atomic numbers to keep; None keeps all that were trained.

    Returns:
        A float32 potential, as the original is; its weights are the same in float64.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read or holds anything but arrays of numbers, an array is
            missing, left over or of a wrong shape, an option is not supported, or an element was
            not trained.
    """
    params, config = Path(params), Path(config)
    network_options, long_range = _options(config)
    tree = Tree(params.name, _arrays(params))
    rows = _trained(tree, species)
    try:
        bare = from_sparse(tree, network_options, rows)
        network = _with_heads(tree, bare, list(rows))
    except (RuntimeError, IndexError) as error:  # raised by torch for shapes that do not fit
        raise ValueError(f"{params.name}: an array has a wrong shape ({error})") from None
    tree.finish()
    sigma, scale = (long_range.positive(f"{name}_energy_scale") for name in TERMS)
    electrostatics = ElectrostaticsConfig(PERIODIC_CUTOFF, True, damping_length=sigma)
    dispersion = DispersionConfig(PERIODIC_CUTOFF, True, damping=scale)
    terms = [
        *bare.pair_terms,
        DampedElectrostatics(electrostatics, rows),
        Dispersion(dispersion, rows),
    ]
    potential = Potential(
        network,
        rows,
        scale=bare.scale.tolist(),
        reference_energies=bare.reference_energies.tolist(),
        pair_terms=terms,
        training=INFO,
    )
    potential.set_dtype(torch.float32)
    return potential


TERMS = ("electrostatic", "dispersion")


def _options(path: Path) -> tuple[Options, Options]:
    """Return the options of the network for `from_sparse`, and those of the long-range terms."""
    written = read_options(path)
    model, data = written.get("model"), written.get("data", written)
    if not isinstance(model, dict) or not isinstance(data, dict):
        raise ValueError(f"{path.name}: no entry 'model'; are these the hyper-parameters of SO3LR?")
    options = Options(path.name, model)
    # the only values that the head of the Hirshfeld ratios supports
    for name, needed in (
        ("energy_activation_fn", "silu"),
        ("energy_regression_dim", model.get("num_features")),
    ):
        if (value := model.get(name)) != needed:
            raise ValueError(
                f"{path.name}: {name} = {value!r} is not supported; supported: {needed!r}"
            )
    long_range: dict[str, Any] = {}
    for term in TERMS:
        options.take(f"{term}_energy_bool", (True,))
        long_range[f"{term}_energy_scale"] = options.value(f"{term}_energy_scale")
    # a cutoff here would be that of the training; the one at run time can be chosen
    options.take("cutoff_lr", (None,))
    options.take("dispersion_energy_cutoff_lr_damping", (None,))
    neighbors = {"avg_num_neighbors": data.get("avg_num_neighbors")}
    return Options(path.name, {**options.left, **neighbors}), Options(path.name, long_range)


def _arrays(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return dict(read_npz(path))
    return dict(read_pickled_arrays(path, LARGEST_WEIGHTS))


def _trained(tree: Tree, species: Sequence[int] | None) -> tuple[int, ...]:
    """Return the elements to keep: those whose learned scale differs from its initial value."""
    scales = tree.peek("observables_0/atomic_scales").reshape(-1).tolist()
    trained = tuple(z for z, scale in enumerate(scales) if z > 0 and scale != UNTRAINED)
    if not trained:
        raise ValueError(f"{tree.file}: not one element was trained")
    if species is None:
        return trained
    if unknown := [z for z in species if z not in trained]:
        known = " ".join(chemical_symbols[z] for z in trained)
        raise ValueError(
            f"{tree.file}: not trained on {' '.join(chemical_symbols[z] for z in unknown)}; "
            f"its elements are: {known}"
        )
    return tuple(sorted(set(species)))


def _with_heads(tree: Tree, bare: Potential, rows: list[int]) -> Any:
    """Return the network with heads for charges and Hirshfeld ratios."""
    config = replace(bare.network.config, predict_charges=True, predict_hirshfeld_ratios=True)
    charges = "observables_0/electrostatic_energy/partial_charges/"
    state: dict[str, Tensor] = dict(bare.network.state_dict())
    state |= dense(tree, f"{charges}charge_dense_regression_vec", "charge_head.head.hidden")
    state |= dense(tree, f"{charges}charge_dense_final_vec", "charge_head.head.energy")
    state |= dense(tree, "observables_2/hirshfeld_ratios_dense_regression", "hirshfeld_head.hidden")
    state |= dense(tree, "observables_2/hirshfeld_ratios_dense_final", "hirshfeld_head.projected")
    tables = {
        "charge_head.of_species": f"{charges}Embed_0/embedding",
        "hirshfeld_head.of_species": "observables_2/Embed_0/embedding",
        "hirshfeld_head.directions": "observables_2/Embed_1/embedding",
    }
    for ours, theirs in tables.items():
        table = tree.take(theirs)[rows]
        state[ours] = table.squeeze(1) if ours.endswith("of_species") else table
    return fill(So3krates, config, len(rows), state)
