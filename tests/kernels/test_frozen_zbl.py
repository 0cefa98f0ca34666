"""The repulsion with slopes written out is the plain one."""

import pytest
import torch
from ase import Atoms
from ase.build import molecule

from attncalc.kernels.frozen_zbl import FrozenZBL
from attncalc.neighbors import VerletList
from attncalc.physics.zbl import COULOMB_CONSTANT, SWITCH_OFF, ZBLConfig, ZBLRepulsion
from attncalc.system import System

SPECIES = (1, 6, 8, 29)


def energies_and_gradient(term, graph):
    vectors = graph.vectors.detach().requires_grad_()
    energies = term(graph.with_vectors(vectors), None)
    # a weight per atom: halves given to the wrong atom would show
    weights = torch.arange(1.0, 1.0 + len(energies), dtype=torch.float64)
    return energies.detach(), torch.autograd.grad((energies * weights).sum(), vectors)[0]


@pytest.mark.parametrize("capacity", [None, 256])
@pytest.mark.parametrize("cutoff", [4.5, 1.2])
def test_equals_the_plain_term(capacity, cutoff):
    term = ZBLRepulsion(ZBLConfig(cutoff), SPECIES).requires_grad_(False)
    frozen = FrozenZBL(term, COULOMB_CONSTANT, SWITCH_OFF)
    close = Atoms("Cu2", positions=[[0, 0, 0], [0.3, 0.2, 0.1]], cell=[1.4, 1.3, 9], pbc=[1, 1, 0])
    system = System.from_ase([molecule("CH3CH2OH"), close])
    verlet = VerletList.create(cutoff=cutoff, skin=0.4, species=SPECIES, capacity=capacity)
    graph = verlet.update(system)[1]
    (ours, our_slopes), (theirs, their_slopes) = (
        energies_and_gradient(t, graph) for t in (frozen, term)
    )
    assert theirs.min() > 0 or cutoff < 4
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_slopes, their_slopes, rtol=1e-11, atol=1e-11)
    assert their_slopes.abs().max() > 10  # eV/Å: the close copper atoms repel


def test_second_derivatives_are_those_of_the_plain_term():
    term = ZBLRepulsion(ZBLConfig(4.5), SPECIES).requires_grad_(False)
    system = System.from_ase(molecule("CH3CH2OH"))
    graph = VerletList.create(cutoff=4.5, skin=0.4, species=SPECIES).update(system)[1]
    found = []
    for one in (FrozenZBL(term, COULOMB_CONSTANT, SWITCH_OFF), term):
        vectors = graph.vectors.detach().requires_grad_()
        energy = one(graph.with_vectors(vectors), None).sum()
        (gradient,) = torch.autograd.grad(energy, vectors, create_graph=True)
        weights = torch.linspace(-1, 1, gradient.numel(), dtype=torch.float64)
        (second,) = torch.autograd.grad((gradient.flatten() * weights).sum(), vectors)
        found.append(second)
    assert found[1].abs().max() > 10
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)
