"""Importer of So3krates: parameter trees of `mlff` (main, v1.0 in SO3LR, v0.1) to a `Potential`.

Input is an .npz of the flattened parameter tree (names joined by "/") and a JSON file of
hyper-parameters with an entry "form": "euclidean" (the dense code), "euclidean_sparse" (v1.0) or
"sphc" (v0.1).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attncalc.convert.inputs import (
    LARGEST_WEIGHTS,
    Options,
    Tree,
    decoding,
    fill,
    read_options,
    species_of_table,
)
from attncalc.files.npz import read_arrays
from attncalc.files.reading import open_regular
from attncalc.nn.so3krates import (
    CutoffFunction,
    NormPosition,
    Refinement,
    So3krates,
    So3kratesConfig,
)
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.nn.so3krates_sphc_config import NonlocalAttention
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential


def so3krates(
    params: str | Path, config: str | Path, *, species: Sequence[int] | None = None
) -> Potential:
    """Convert published So3krates parameters.

    Args:
        params: .npz with the flattened parameter tree.
        config: .json with the hyper-parameters.
        species: atomic numbers to keep; None keeps every row of the embedding table.

    Returns:
        A float64 potential, because some tensors absorb factors that float32 would round. Its
        energy shifts are those of the hyper-parameters or weights, without any other.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, an array is missing, left over or of a wrong shape, or
            an option is not supported.
    """
    arrays, options = read_npz(Path(params)), read_options(Path(config))
    form = options.pop("form", None)
    if form not in FORMS:
        raise ValueError(
            f"{Path(config).name}: form {form!r} is not one of {', '.join(map(repr, FORMS))}"
        )
    tree = Tree(Path(params).name, arrays)
    try:
        potential = FORMS[form](tree, Options(Path(config).name, options), species)
    except (RuntimeError, IndexError) as error:  # raised by torch for shapes that do not fit
        raise ValueError(f"{Path(params).name}: an array has a wrong shape ({error})") from None
    tree.finish()
    return potential


# ---------------------------------------------------------------------------------- dense code


def _from_dense(tree: Tree, options: Options, species: Sequence[int] | None) -> Potential:
    pre_norm = options.take("feature_layer_norm", (False, "pre", True)) in ("pre", True)
    neighbourhood = options.take("chi_init", ("zeros", "neighbourhood")) == "neighbourhood"
    mlp: Refinement = "projected" if options.take("residual_mlp", (False, True)) else "none"
    width = options.integer("features")
    config = So3kratesConfig(
        cutoff=options.number("cutoff"),
        avg_num_neighbors=1.0,
        num_features=width,
        num_heads=options.integer("heads"),
        degrees=options.value("degrees"),
        num_layers=options.integer("layers"),
        radial_basis=options.value("radial_basis"),
        num_basis=options.integer("num_radial"),
        cutoff_function=options.value("cutoff_function"),
        attention_norm="sqrt_head_width",
        layer_norms=("before_attention", "before_exchange") if pre_norm else (),
        mlp_after_attention=mlp,
        mlp_after_exchange=mlp,
        ev_init_divisor=float(options.value("chi_init_divisor", 1.0)) if neighbourhood else None,
        head_features=width,
    )
    zbl = options.value("zbl", False)
    scale = options.value("per_atom_scale", None)
    shift = options.value("per_atom_shift", None)
    options.value("chi_init_divisor", None)
    options.finish()

    species, state = _embedding(tree, species)
    state |= _layers(tree, config, _dense_layer) | _old_head(tree)
    terms = [_zbl(tree, "observables_0/ZBLRepulsion_0/", config, species)] if zbl else []
    return Potential(
        fill(So3krates, config, len(species), state),
        species,
        scale=_rows(scale, species, "per_atom_scale"),
        reference_energies=_rows(shift, species, "per_atom_shift"),
        pair_terms=terms,
    )


def _dense_layer(tree: Tree, n: int, config: So3kratesConfig) -> dict[str, Tensor]:
    blocks = [f"layers_{n}/FeatureBlock_0/", f"layers_{n}/GeometricBlock_0/"]
    state = _dense_filters(tree, blocks)
    coefficients = "attention_fn/VmapConvAttentionCoefficients_0/Dense_{}/kernel"
    feature, geometry = (
        [tree.take(block + coefficients.format(k)) for k in (0, 1)] for block in blocks
    )
    value = tree.take(blocks[0] + "attention_fn/VmapAttentionAggregation_0/Dense_0/kernel")
    state["attention.feature_projection"] = torch.cat([*feature, value], dim=2)
    state["attention.geometry_projection"] = torch.cat(geometry, dim=2)

    weight = tree.take(f"layers_{n}/InteractionBlock_0/MLP_0/layers_0/kernel").clone()
    # the dense code rounds this block's 1 / sqrt(2l+1) to float32: 1e-9 of the energy
    norm = np.array([1 / math.sqrt(2 * l + 1) for l in config.degrees])
    rounded = norm.astype(np.float32).astype(np.float64) / norm
    weight[config.num_features :] *= torch.from_numpy(rounded).unsqueeze(1)
    state["exchange.linear.weight"] = weight
    state["exchange.linear.bias"] = tree.take(f"layers_{n}/InteractionBlock_0/MLP_0/layers_0/bias")
    for k, place in enumerate(("attention", "exchange")):
        if f"before_{place}" in config.layer_norms:
            name = f"layers_{n}/LayerNorm_{k}/"
            state[f"norm_before_{place}.scale"] = tree.take(name + "scale")
            state[f"norm_before_{place}.bias"] = tree.take(name + "bias")
        if config.mlp_after_attention == "projected":
            name = f"layers_{n}/ResidualMLP_{k}/"
            mlp = f"mlp_after_{place}."
            state[mlp + "residual.first.weight"] = tree.take(name + "Residual_0/layers_0/kernel")
            state[mlp + "residual.second.weight"] = tree.take(name + "Residual_0/layers_1/kernel")
            state[mlp + "last.weight"] = tree.take(name + "Dense_0/kernel")
    return state


def _dense_filters(tree: Tree, blocks: Sequence[str]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for k, mlp in enumerate(("radial_mlp", "spherical_mlp")):
        layers = [[f"{block}filter_fn/VmapMLP_{k}/layers_{n}" for block in blocks] for n in (0, 1)]
        state |= _filters(f"attention.{mlp}", lambda name: tree.take(name)[0], *layers)
    return state


# --------------------------------------------------------------------------------- sparse code


def from_sparse(tree: Tree, options: Options, species: Sequence[int] | None) -> Potential:
    """Convert parameters and options of the v1.0 code, and remove those used from both.

    Raises:
        ValueError: an array is missing or of a wrong shape, or an option is not supported; arrays
            may be left over.
    """
    cutoff_functions: dict[str, CutoffFunction] = {
        "phys": "physnet",
        "exponential": "exponential",
        "cosine": "cosine",
    }
    norms: dict[NormPosition, bool] = {
        "after_attention": options.take("layer_normalization_1", (False, True)),
        "after_exchange": options.take("layer_normalization_2", (False, True)),
    }
    mlps: list[Refinement] = [
        "residual" if options.take(f"residual_mlp_{k}", (False, True)) else "none" for k in (1, 2)
    ]
    norm = options.take("message_normalization", tuple(ATTENTION_NORMS))
    # no default where it matters: a wrong number would give wrong energies silently
    neighbors = options.number("avg_num_neighbors") if norm == "avg_num_neighbors" else 1.0
    width = options.integer("num_features")
    regression = options.value("energy_regression_dim", None)
    activations = ("identity", "silu")
    config = So3kratesConfig(
        cutoff=options.number("cutoff"),
        avg_num_neighbors=neighbors,
        num_features=width,
        num_heads=options.integer("num_heads"),
        degrees=options.value("degrees"),
        num_layers=options.integer("num_layers"),
        radial_basis=options.value("radial_basis_fn"),
        num_basis=options.integer("num_radial_basis_fn"),
        cutoff_function=cutoff_functions[options.take("cutoff_fn", tuple(cutoff_functions))],
        attention_norm=ATTENTION_NORMS[norm],
        qk_activation=options.take("qk_non_linearity", activations),
        layer_norms=tuple(place for place, on in norms.items() if on),
        mlp_after_attention=mlps[0],
        mlp_after_exchange=mlps[1],
        embed_charge=options.take("use_charge_embed", (False, True)),
        embed_spin=options.take("use_spin_embed", (False, True)),
        head_features=None if regression is None else int(regression),
        head_activation=options.take("energy_activation_fn", activations),
    )
    options.take("activation_fn", ("silu",))
    scaled = options.take("energy_learn_atomic_type_scales", (False, True))
    shifted = options.take("energy_learn_atomic_type_shifts", (False, True))
    zbl = options.take("zbl_repulsion_bool", (False, True))
    for name in IRRELEVANT_OPTIONS:
        options.value(name, None)
    options.finish()

    species, state = _embedding(tree, species)
    used = [name for name in ("charge", "spin") if getattr(config, f"embed_{name}")]
    for k, name in enumerate(used, start=1):
        base, mine = f"feature_embeddings_{k}/ChargeSpinEmbedSparse_0/", f"embedding.{name}."
        state[mine + "query"] = tree.take(base + "Embed_0/embedding")[list(species)]
        state[mine + "key"] = tree.take(base + "Embed_1/embedding")
        state[mine + "value"] = tree.take(base + "Embed_2/embedding")
        state[mine + "refine.first.weight"] = tree.take(base + "Residual_0/layers_0/kernel")
        state[mine + "refine.second.weight"] = tree.take(base + "Residual_0/layers_1/kernel")
    state |= _layers(tree, config, _sparse_layer)
    if config.head_features is not None:
        state |= dense(tree, "observables_0/energy_dense_regression", "head.hidden")
    state |= dense(tree, "observables_0/energy_dense_final", "head.energy")
    scale = tree.take("observables_0/atomic_scales") if scaled else None
    shift = tree.take("observables_0/energy_offset") if shifted else None
    terms = [_zbl(tree, "observables_0/zbl_repulsion/", config, species)] if zbl else []
    return Potential(
        fill(So3krates, config, len(species), state),
        species,
        scale=_rows(scale, species, "atomic_scales"),
        reference_energies=_rows(shift, species, "energy_offset"),
        pair_terms=terms,
    )


def _sparse_layer(tree: Tree, n: int, config: So3kratesConfig) -> dict[str, Tensor]:
    base = f"layers_{n}/attention_block/"
    state: dict[str, Tensor] = {}
    for kind in ("radial", "spherical"):
        layers = [[f"{base}{kind}_filter{k}_layer_{n}" for k in (1, 2)] for n in (1, 2)]
        state |= _filters(f"attention.{kind}_mlp", tree.take, *layers)
    # einsum arrays [head, out, in], transposed relative to the dense code
    feature = [tree.take(f"{base}{name}").transpose(1, 2) for name in ("Wq1", "Wk1", "Wv1")]
    geometry = [tree.take(f"{base}{name}").transpose(1, 2) for name in ("Wq2", "Wk2")]
    state["attention.feature_projection"] = torch.cat(feature, dim=2)
    state["attention.geometry_projection"] = torch.cat(geometry, dim=2)
    state |= dense(tree, f"layers_{n}/exchange_block/mlp_layer_2", "exchange.linear")
    for k, place in enumerate(("attention", "exchange"), start=1):
        if f"after_{place}" in config.layer_norms:
            name = f"layers_{n}/layer_normalization_{k}/"
            state[f"norm_after_{place}.scale"] = tree.take(name + "scale")
            state[f"norm_after_{place}.bias"] = tree.take(name + "bias")
        if getattr(config, f"mlp_after_{place}") == "residual":
            name, mine = f"layers_{n}/res_mlp_{k}_layer_", f"mlp_after_{place}."
            state |= dense(tree, f"{name}1", f"{mine}first")
            state |= dense(tree, f"{name}2", f"{mine}second")
    return state


ATTENTION_NORMS: dict[str, Literal["avg_num_neighbors", "sqrt_head_width"]] = {
    "sqrt_num_features": "sqrt_head_width",
    "avg_num_neighbors": "avg_num_neighbors",
    "identity": "avg_num_neighbors",  # of 1
}
# read by the published code but without effect on energies, or only used in training
IRRELEVANT_OPTIONS = (
    "avg_num_neighbors",
    "num_features_head",
    "output_is_zero_at_init",
    "output_intermediate_quantities",
    "layers_behave_like_identity_fn_at_init",
    "input_convention",
)


# ----------------------------------------------------------------------------------- sphc code


def _from_sphc(tree: Tree, options: Options, species: Sequence[int] | None) -> Potential:
    width, dynamic = options.integer("features"), options.take("chi_cut_dynamic", (False, True))
    attention: NonlocalAttention = "dynamic" if dynamic else "none"
    end = So3kratesSphcConfig.sphc_cutoff  # other kinds of attention do not read it
    if options.left.get("chi_cut") is None:
        options.value("chi_cut", None)
    elif dynamic:
        options.take("chi_cut", (None,))  # dynamic attention would not read it
    else:
        attention, end = "fixed", options.positive("chi_cut")
    if attention != "none":  # local attention sees no pair beyond the cutoff, whatever the list
        options.take("neighbours", ("all pairs",))
    options.value("neighbours", None)
    config = So3kratesSphcConfig(
        cutoff=options.number("cutoff"),
        num_features=width,
        num_heads=options.integer("heads"),
        degrees=options.value("degrees"),
        num_layers=options.integer("layers"),
        radial_basis=options.value("radial_basis"),
        num_basis=options.integer("num_radial"),
        radial_features=options.integer("radial_hidden"),
        spherical_features=options.integer("spherical_hidden"),
        cutoff_function=options.value("cutoff_function"),
        form="published",
        nonlocal_attention=attention,
        sphc_cutoff=end,
        feature_norm="layer" if options.take("feature_layer_norm", (False, True)) else "none",
        sphc_norm="degree" if options.take("sphc_layer_norm", (False, True)) else "none",
        paths="natural" if options.take("parity", (False, True)) else "all",
    )
    scale = options.value("per_atom_scale", None)
    shift = options.value("per_atom_shift", None)
    options.finish()
    if config.paths == "all" and max(config.degrees) > HIGHEST_KNOWN:
        raise ValueError(
            f"{options.file}: degrees above {HIGHEST_KNOWN} with parity = false are not supported: "
            "the signs of their published coupling coefficients are not known"
        )

    species, state = _embedding(tree, species)
    state |= _layers(tree, config, _sphc_layer) | _old_head(tree)
    return Potential(
        fill(So3kratesSphc, config, len(species), state),
        species,
        scale=_rows(scale, species, "per_atom_scale"),
        reference_energies=_rows(shift, species, "per_atom_shift"),
    )


def _sphc_layer(tree: Tree, n: int, config: So3kratesSphcConfig) -> dict[str, Tensor]:
    blocks = [f"layers_{n}/FeatureBlock_0/", f"layers_{n}/GeometricBlock_0/"]
    state = _dense_filters(tree, blocks)
    coefficients = "attention_fn/VmapConvAttentionCoefficients_0/Dense_{}"
    names = [[block + coefficients.format(k) for k in (0, 1)] for block in blocks]
    names[0].append(blocks[0] + "attention_fn/VmapAttentionAggregation_0/Dense_0")
    for kind, parts in zip(("feature", "geometry"), names, strict=True):
        weights = [tree.take(f"{part}/kernel") for part in parts]
        biases = [tree.take(f"{part}/bias").unsqueeze(1) for part in parts]
        state[f"attention.{kind}_projection"] = torch.cat(weights, dim=2)
        state[f"attention.{kind}_bias"] = torch.cat(biases, dim=2)

    interaction = f"layers_{n}/InteractionBlock_0/"
    mixing = tree.take(interaction + "selfmix/params").clone()
    for l, p, q in OPPOSITE_COUPLINGS:
        if {l, p, q} <= set(config.degrees):
            mixing[tuple(config.degrees.index(degree) for degree in (l, p, q))] *= -1
    state["interaction.mixing"] = mixing
    state |= dense(tree, interaction + "MLP_0/layers_0", "interaction.linear")
    state |= dense(tree, interaction + "MLP_1/layers_0", "interaction.from_products")
    for k, place in enumerate(("attention", "interaction")):
        if config.feature_norm == "layer":
            for part in ("scale", "bias"):
                stored = tree.take(f"layers_{n}/LayerNorm_{k}/{part}")
                state[f"norm_after_{place}.features.{part}"] = stored
        if config.sphc_norm == "degree":
            stored = tree.take(f"layers_{n}/SPHCLayerNorm_{k}/scale_weight")
            state[f"norm_after_{place}.lengths"] = stored
    return state


# blocks (l, p, q) of the published Clebsch-Gordan tensor, p < q, with the opposite sign of e3nn's
# wigner_3j
OPPOSITE_COUPLINGS = ((2, 1, 2), (2, 2, 3), (3, 1, 3))
HIGHEST_KNOWN = 3  # degree of these blocks

FORMS = {"euclidean": _from_dense, "euclidean_sparse": from_sparse, "sphc": _from_sphc}


# -------------------------------------------------------------------------------------- shared


def _embedding(
    tree: Tree, species: Sequence[int] | None
) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Return the elements to keep, and their rows of the table of elements."""
    table = tree.take("feature_embeddings_0/Embed_0/embedding")
    kept = species_of_table(species, len(table))
    return kept, {"embedding.element": table[list(kept)]}


def _layers(tree: Tree, config: Any, layer: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"layers.{n}.{name}": tensor
        for n in range(config.num_layers)
        for name, tensor in layer(tree, n, config).items()
    }


def _old_head(tree: Tree) -> dict[str, Tensor]:
    """Return the parameters of the energy head of the dense code and v0.1."""
    head = "observables_0/MLP_0/layers_"
    return dense(tree, f"{head}0", "head.hidden") | dense(tree, f"{head}1", "head.energy")


def _zbl(tree: Tree, base: str, config: So3kratesConfig, species: tuple[int, ...]) -> ZBLRepulsion:
    term = ZBLRepulsion(ZBLConfig(config.cutoff, config.cutoff_function), species)
    stored = {
        "exponents": ("a1", "a2", "a3", "a4"),
        "coefficients": ("c1", "c2", "c3", "c4"),
        "charge_power": ("p",),
        "inverse_length": ("d",),
    }
    term.load_state_dict(
        {
            name: torch.cat([tree.take(base + part).reshape(1) for part in parts])
            for name, parts in stored.items()
        }
    )
    return term


def _filters(
    name: str, take: Callable[[str], Tensor], first: Sequence[str], second: Sequence[str]
) -> dict[str, Tensor]:
    """Return the filters of features and geometry, networks of two layers each, as one network."""
    return {
        f"{name}.first": torch.cat([take(f"{layer}/kernel") for layer in first], dim=1),
        f"{name}.first_bias": torch.cat([take(f"{layer}/bias") for layer in first]),
        f"{name}.second": torch.stack([take(f"{layer}/kernel") for layer in second]),
        f"{name}.second_bias": torch.stack([take(f"{layer}/bias") for layer in second])[:, None],
    }


def dense(tree: Tree, theirs: str, ours: str) -> dict[str, Tensor]:
    """Return weight and bias of a Dense layer under our names."""
    return {
        f"{ours}.weight": tree.take(f"{theirs}/kernel"),
        f"{ours}.bias": tree.take(f"{theirs}/bias"),
    }


def _rows(values: Any, species: tuple[int, ...], name: str) -> list[float] | None:
    if values is None:
        return None
    values = [float(value) for value in values]
    if len(values) <= max(species):
        raise ValueError(f"{name} has {len(values)} entries, none for element {max(species)}")
    return [values[z] for z in species]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds a pickle.
    """
    with decoding(path, "a readable .npz"), open_regular(path) as file:
        if zipfile.is_zipfile(file):
            found = read_arrays(file, always=LARGEST_WEIGHTS)
            if pickled := [name for name, array in found.items() if array is None]:
                raise ValueError(f"array {pickled[0]!r} is a pickle")
            return {name: array for name, array in found.items() if array is not None}
    raise ValueError(f"{path.name}: not a readable .npz, or a damaged one: download it again")
