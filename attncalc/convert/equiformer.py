"""Importer of Equiformer for MD17: state dicts of the official code to a `Potential`.

Input is the state dict as .safetensors and a JSON file of hyper-parameters; its `clebsch_gordan`
names the sign convention that the weights were trained with, "e3nn>=0.5" or "e3nn-0.4.4".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from ase.data import chemical_symbols
from safetensors.torch import load as tensors_of
from torch import Tensor

from attncalc.basis.edge_frames import coupling
from attncalc.convert.inputs import (
    LARGEST_WEIGHTS,
    Options,
    Tree,
    decoding,
    fill,
    read_options,
    species_of_table,
)
from attncalc.files.reading import read_whole
from attncalc.nn.edge_products import PathIndex, TensorPath
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.potential import Potential

# Å. Elsewhere the published radial functions decay by exp(-5 d / cutoff) instead of exp(-d), see
# `ExpNormalSmearing` in nets/graph_attention_transformer_md17.py of the published code
CUTOFF = 5.0
# Wigner 3j tensors whose sign changed from e3nn 0.4.4 to 0.5
TURNED = {(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 3, 3), (3, 1, 3), (3, 3, 1)}
# sign of the entry [0, 0, 1] of the tensor (1, 2, 2)
SIGNS = {"e3nn>=0.5": -1, "e3nn-0.4.4": 1}


def equiformer(
    weights: str | Path,
    config: str | Path,
    *,
    species: Sequence[int] | None = None,
    std: float = 1.0,
    mean: float = 0.0,
    n_atoms: int | None = None,
) -> Potential:
    """Convert published Equiformer weights that were trained without denoising.

    The network was trained on (E - mean) / std of the total energies of one molecule. The weights
    do not contain these two numbers. The mean is distributed equally over the atoms, so that total
    energies are correct only for molecules of `n_atoms` atoms.

    Args:
        weights: .safetensors with the state dict.
        config: .json with the hyper-parameters.
        species: atomic numbers to keep; None keeps every row of the embedding table but the
            first, which stands for no element.
        std, mean: standard deviation and mean of the training energies, eV.
        n_atoms: number of atoms of the molecule; needed if `mean` is not zero.

    Returns:
        A float64 potential that gives the published numbers: its energy jumps at the cutoff, and
        differs between a molecule and its mirror image.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, a tensor is missing, left over or of a wrong shape, an
            option is not supported, or the tensors have another sign convention.
    """
    if not std > 0 or not math.isfinite(std) or not math.isfinite(mean):
        raise ValueError(f"std must be positive and mean finite, got {std} and {mean}")
    if mean and not (n_atoms and n_atoms > 0):
        raise ValueError("a mean energy needs n_atoms, the number of atoms of the molecule")
    path = Path(weights)
    with decoding(path, "a readable .safetensors"):
        tree = Tree(path.name, tensors_of(read_whole(path, LARGEST_WEIGHTS)))
    if any(name.startswith("force_embed.") for name in tree.left):
        raise ValueError(
            f"{path.name}: these weights were trained with denoising (DeNS), and such weights are "
            "not converted"
        )
    options = Options(Path(config).name, read_options(Path(config)))
    sign = SIGNS[options.take("clebsch_gordan", tuple(SIGNS))]
    _drop_constants(tree, sign)
    ours, average_size = _config(options)
    try:
        state = _state(tree, ours, turn=sign > 0)
    except (RuntimeError, IndexError) as error:  # raised by torch for shapes that do not fit
        raise ValueError(f"{tree.file}: a tensor has a wrong shape ({error})") from None
    tree.finish()
    kept = species_of_table(species, min(len(state["element"]), len(chemical_symbols)))
    state["element"] = state["element"][list(kept)]
    return Potential(
        fill(Equiformer, ours, len(kept), state),
        kept,
        scale=[std / math.sqrt(average_size)] * len(kept),
        reference_energies=[mean / n_atoms if n_atoms else 0.0] * len(kept),
    )


def _config(options: Options) -> tuple[EquiformerConfig, float]:
    """Return hyper-parameters, and the number whose square root divides the sum over atoms."""
    channels = _channels(options, "irreps_node_embedding")
    heads, hidden = options.integer("num_heads"), options.value("radial_hidden")
    per_head, middle = _channels(options, "irreps_head"), _channels(options, "irreps_mlp_mid")
    harmonics = _channels(options, "irreps_sh")
    final = _channels(options, "irreps_feature")
    if not isinstance(hidden, list) or len(hidden) != 2 or hidden[0] != hidden[1]:
        raise ValueError(f"{options.file}: radial_hidden must be two equal widths, got {hidden!r}")
    for name, agrees in (
        ("irreps_head", [heads * width for width in per_head] == channels),
        ("irreps_mlp_mid", middle[0] % channels[0] == 0),
        ("irreps_sh", harmonics == [1] * len(channels)),
        ("irreps_feature", len(final) == 1),
        ("lmax", options.integer("lmax") == len(channels) - 1),
        ("alpha_drop", options.number("alpha_drop") == 0),
        ("layer_norm_eps", options.number("layer_norm_eps") == 1e-5),
    ):
        if not agrees:
            raise ValueError(f"{options.file}: {name} is not supported with the others")
    factor = middle[0] // channels[0]
    if middle != [factor * width for width in channels]:
        raise ValueError(f"{options.file}: irreps_mlp_mid is not supported with the others")
    for told in ("max_atomic_number", "num_parameters"):  # the tensors say the same
        options.value(told, None)
    cutoff = options.number("cutoff")
    if cutoff != CUTOFF:
        raise ValueError(
            f"{options.file}: cutoff = {cutoff!r} is not supported; supported: {CUTOFF}"
        )
    config = EquiformerConfig(
        cutoff=cutoff,
        avg_num_neighbors=options.number("avg_degree"),
        attention=options.take("variant", ("nonlinear", "linear", "dot")),
        channels=tuple(channels),
        num_layers=options.integer("num_layers"),
        num_heads=heads,
        attention_features=per_head[0],
        feed_forward_factor=factor,
        num_basis=options.integer("num_basis"),
        radial_features=hidden[0],
        head_features=final[0],
        cutoff_function="none",
        paths="all",
        norm="degree",
    )
    average_size = options.positive("avg_num_nodes")
    options.finish()
    return config, average_size


def _channels(options: Options, name: str) -> list[int]:
    """Return channels per degree from irreps such as "128x0e+64x1e+32x2e"."""
    text = options.value(name)
    found = re.findall(r"([1-9]\d*)x(\d+)e(?:\+|$)", text) if isinstance(text, str) else []
    if (
        not found
        or "+".join(f"{n}x{degree}e" for n, degree in found) != text
        or [int(degree) for _, degree in found] != list(range(len(found)))
    ):
        raise ValueError(
            f"{options.file}: {name} must read like 128x0e+64x1e+32x2e, degrees 0, 1, 2, ... "
            f"all even, got {text!r}"
        )
    return [int(n) for n, _ in found]


def _state(tree: Tree, config: EquiformerConfig, *, turn: bool) -> dict[str, Tensor]:
    channels = list(config.channels)
    paths = config.tensor_paths(len(channels), len(channels))
    signs = _signs(paths, channels) if turn else torch.ones(1, dtype=torch.float64)
    n_rows = PathIndex(channels, paths).n_rows
    ours: dict[str, Tensor] = {
        "element": tree.take("atom_embed.atom_type_lin.tp.weight").view(-1, channels[0]),
        "element_bias": tree.take("atom_embed.atom_type_lin.bias.0"),
        "basis.centres": tree.take("rbf.means"),
        "basis.widths": tree.take("rbf.betas"),
        **_map(tree, "edge_deg_embed.exp", "edge_degree.expand", [1], channels[:1]),
        **_radial(tree, "edge_deg_embed.rad", "edge_degree.radial", signs),
        **_map(tree, "edge_deg_embed.proj", "edge_degree.projection", n_rows, channels),
    }
    hidden = [config.feed_forward_factor * width for width in channels]
    final = [config.head_features]
    for k in range(config.num_layers):
        last = k == config.num_layers - 1
        theirs, mine = f"blocks.{k}.", "last_block." if last else f"blocks.{k}."
        attention = theirs + ("dpa." if config.attention == "dot" else "ga.")
        for norm in ("norm_1", "norm_2"):
            ours |= _norm(tree, theirs + norm, mine + norm, channels)
        source, target = f"{attention}merge_src", f"{attention}merge_dst"
        merge = f"{mine}attention.merge_"
        ours |= _map(tree, source, f"{merge}source", channels, channels)
        ours |= _map(tree, target, f"{merge}target", channels, channels, bias=False)
        ours |= _map(tree, f"{attention}proj", f"{mine}attention.projection", channels, channels)
        ours |= _messages(tree, attention, f"{mine}attention.", config, n_rows, signs)
        gates = [sum(hidden), *hidden[1:]]
        ours |= _map(tree, f"{theirs}ffn.fctp_1", f"{mine}feed_forward.first", channels, gates)
        out = final if last else channels
        ours |= _map(tree, f"{theirs}ffn.fctp_2", f"{mine}feed_forward.second", hidden, out)
        if last:
            ours |= _map(tree, f"{theirs}ffn_shortcut", f"{mine}shortcut", channels[:1], final)
    ours |= _norm(tree, "norm", "norm", final)
    ours |= _map(tree, "head.0", "hidden", final, final)
    return ours | _map(tree, "head.2", "energy", final, [1])


def _messages(
    tree: Tree,
    theirs: str,
    mine: str,
    config: EquiformerConfig,
    n_rows: list[int],
    signs: Tensor,
) -> dict[str, Tensor]:
    """Return the parameters in which the three attentions differ."""
    channels, inner = list(config.channels), f"{mine}messages."
    n_attention = config.num_heads * config.attention_features
    if config.attention == "dot":
        both = [2 * width for width in channels]
        return {
            **_map(tree, f"{theirs}query", f"{mine}query", channels, channels),
            **_radial(tree, f"{theirs}key_value.dtp_rad", f"{inner}radial", signs),
            **_map(tree, f"{theirs}key_value.lin", f"{inner}linear", n_rows, both),
        }
    nonlinear = config.attention == "nonlinear"
    first = f"{theirs}sep_act" if nonlinear else f"{theirs}sep"
    n_scalars = sum(channels) if nonlinear else n_attention + channels[0]
    state = {
        **_radial(tree, f"{first}.dtp_rad", f"{inner}radial", signs),
        **_map(tree, f"{first}.lin", f"{inner}linear", n_rows, [n_scalars, *channels[1:]]),
        f"{inner}alpha": tree.take(f"{theirs}alpha_dot").squeeze(0),
    }
    if nonlinear:
        state |= {
            **_map(tree, f"{theirs}sep_alpha", f"{inner}attention", n_rows[:1], [n_attention]),
            f"{inner}second_weights": tree.take(f"{theirs}sep_value.dtp.tp.weight") * signs,
            **_map(tree, f"{theirs}sep_value.lin", f"{inner}value", n_rows, channels),
        }
    return state


def _map(
    tree: Tree,
    theirs: str,
    mine: str,
    n_in: Sequence[int],
    n_out: Sequence[int],
    *,
    bias: bool = True,
) -> dict[str, Tensor]:
    """Return a linear map, which is stored as one flat tensor of [in, out] for each degree."""
    shapes = list(zip(n_in, n_out, strict=False))
    parts = tree.take(f"{theirs}.tp.weight").split([i * o for i, o in shapes])
    weights = zip(parts, shapes, strict=True)
    state = {
        f"{mine}.weights.{degree}": part.view(i, o) for degree, (part, (i, o)) in enumerate(weights)
    }
    if bias:
        state[f"{mine}.bias"] = tree.take(f"{theirs}.bias.0")
    return state


def _norm(tree: Tree, theirs: str, mine: str, channels: Sequence[int]) -> dict[str, Tensor]:
    scales = tree.take(f"{theirs}.affine_weight").split(list(channels))
    state = {f"{mine}.scales.{degree}": scale for degree, scale in enumerate(scales)}
    return state | {f"{mine}.bias": tree.take(f"{theirs}.affine_bias")}


def _radial(tree: Tree, theirs: str, mine: str, signs: Tensor) -> dict[str, Tensor]:
    state = {
        f"{mine}.last": tree.take(f"{theirs}.net.6.weight").t() * signs,
        f"{mine}.offset": tree.take(f"{theirs}.offset") * signs,
    }
    for layer, name in ((0, "first"), (3, "second")):
        state[f"{mine}.{name}"] = tree.take(f"{theirs}.net.{layer}.weight").t()
        state[f"{mine}.{name}_bias"] = tree.take(f"{theirs}.net.{layer}.bias")
        for part, norm in (("weight", "scale"), ("bias", "bias")):
            state[f"{mine}.{name}_norm_{norm}"] = tree.take(f"{theirs}.net.{layer + 1}.{part}")
    return state


def _signs(paths: Sequence[TensorPath], channels: Sequence[int]) -> Tensor:
    """Return -1 for weights of paths whose Wigner 3j tensor has changed its sign, else 1."""
    values = ((path, -1.0 if path in TURNED else 1.0) for path in paths)
    return torch.tensor(PathIndex(channels, paths).per_channel(values), dtype=torch.float64)


def _drop_constants(tree: Tree, sign: int) -> None:
    """Remove e3nn's constant buffers, and check the sign convention with some of them."""
    ours = coupling(1, 2, 2)  # in the present sign convention
    for name in list(tree.left):
        tensor = tree.left[name]
        if name.endswith("_w3j_1_2_2") and tensor.shape == ours.shape:
            overlap = float((tensor.double() * ours).sum())  # 1 or -1
            told = -1 if overlap > 0 else 1
            if abs(abs(overlap) - 1) > 1e-3:
                raise ValueError(f"{tree.file}: {name} is no Wigner 3j tensor of e3nn")
            if told != sign:
                right = next(key for key, value in SIGNS.items() if value == told)
                raise ValueError(
                    f"{tree.file}: these weights belong to the signs of {right} ({name}), the "
                    'hyper-parameters say otherwise: correct "clebsch_gordan"'
                )
        if "_w3j_" in name or name.endswith("output_mask") or not tensor.numel():
            del tree.left[name]
