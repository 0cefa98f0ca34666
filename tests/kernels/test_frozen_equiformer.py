"""An Equiformer whose weights are folded once equals, bit by bit, the one that folds each time."""

from __future__ import annotations

import copy

import pytest
import torch
from contract import ELEMENTS, build_graph, ethanol, randomise, slab, triclinic

from attncalc.fast import lower
from attncalc.kernels.frozen_equiformer import frozen
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.ops import with_modules
from attncalc.potential import Potential, evaluate
from attncalc.system import System


def potential(attention: str, paths: str) -> Potential:
    torch.manual_seed(0)
    config = EquiformerConfig(
        *(3.5, 8.0),
        attention=attention,
        channels=(8, 4, 4),
        num_layers=2,
        num_heads=2,
        paths=paths,
        head_features=6,
    )
    network = Equiformer(config, len(ELEMENTS))
    randomise(network)
    return Potential(network, ELEMENTS).requires_grad_(False)


@pytest.mark.parametrize("attention", ["nonlinear", "linear", "dot"])
@pytest.mark.parametrize("paths", ["natural", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits(attention: str, paths: str, dtype: torch.dtype) -> None:
    plain = potential(attention, paths)
    plain.set_dtype(dtype)
    fast = with_modules(plain, network=frozen(plain.network))
    for atoms in (ethanol(), triclinic(), slab()):
        graph = build_graph(plain, System.from_ase(atoms), skin=1.0, capacity=32)
        one, other = evaluate(fast, graph), evaluate(plain, graph)
        for name in ("energies", "forces", "strain_gradient"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_nothing_is_folded_again() -> None:
    """What a changed weight would change shows that the folded ones are used."""
    plain = potential("nonlinear", "natural")
    graph = build_graph(plain, System.from_ase(ethanol()))
    fast = with_modules(plain, network=frozen(plain.network))
    before = evaluate(fast, graph).energy
    with torch.no_grad():
        for block in (*plain.network.blocks, plain.network.last_block):
            block.attention.messages.alpha += 1.0
    assert torch.equal(evaluate(fast, graph).energy, before)
    assert not torch.equal(evaluate(plain, graph).energy, before)


def test_models_are_lowered_to_it() -> None:
    plain = potential("linear", "natural")
    state = copy.deepcopy(plain.state_dict())
    fast = lower(plain)
    assert fast is not plain
    graph = build_graph(plain, System.from_ase(ethanol()))
    assert torch.equal(evaluate(fast, graph).forces, evaluate(plain, graph).forces)
    assert all(torch.equal(t, state[name]) for name, t in plain.state_dict().items())
