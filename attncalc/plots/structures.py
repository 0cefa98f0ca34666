"""Drawing of a structure as balls and sticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.geometry import find_mic, wrap_positions
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from attncalc.bonds import BOND
from attncalc.graph import edge_vectors
from attncalc.neighbors import neighbor_list
from attncalc.system import System

# balls over covalent radii, and the width of sticks in Å
BALL, STICK = 0.62, 0.22
# most atoms with which sticks can be seen, and most sticks per atom that do not hide everything
MOST_WITH_STICKS, MOST_STICKS = 800, 2.2
# degrees: a crystal is upright, turned a little, and seen a little from above
TURN, TILT = 17.0, -78.0


def draw_structure(
    axes: Axes,
    atoms: Atoms,
    *,
    colors: Sequence[tuple[float, float, float]] | None = None,
    symbols: bool = False,
) -> None:
    """Draw balls and sticks, the nearest in front, with the cell of a periodic structure.

    A molecule shows its broadest side; a periodic structure is wrapped into its cell, with
    molecules in one piece.

    Args:
        axes: axes to draw on; their frame is removed.
        atoms: the structure.
        colors: colours of the atoms, RGB; None for those of the elements.
        symbols: write the elements' symbols on the balls.
    """
    shown = atoms.copy()
    if shown.pbc.any():
        shown.wrap()
        if len(shown) <= MOST_WITH_STICKS:
            shown.positions = _in_one_piece(shown)
    turned = _turn(shown.positions, atoms)
    edges = _turn(_cell_edges(shown).reshape(-1, 3), atoms)
    rgb = jmol_colors[shown.numbers] if colors is None else np.asarray(colors)
    radii = BALL * np.maximum(covalent_radii[shown.numbers], 0.4)
    if len(shown) <= MOST_WITH_STICKS:
        _sticks(axes, shown, turned, radii)
    for k, (x, y, z) in enumerate(turned):
        rim = 0.55 * rgb[k]
        ball = Circle((x, y), radii[k], facecolor=rgb[k], edgecolor=rim, linewidth=0.8, zorder=z)
        axes.add_patch(ball)
        if symbols:
            ink = "white" if rgb[k] @ (0.3, 0.59, 0.11) < 0.5 else "0.15"
            middle: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
            axes.text(x, y, shown.symbols[k], color=ink, fontsize="x-small", zorder=z, **middle)
        else:
            glint = (x - 0.3 * radii[k], y + 0.3 * radii[k])
            shine: dict[str, Any] = {
                "facecolor": "white",
                "alpha": 0.35,
                "linewidth": 0,
                "zorder": z,
            }
            axes.add_patch(Circle(glint, 0.28 * radii[k], **shine))
    for edge in edges.reshape(-1, 2, 3):
        axes.plot(*edge.T[:2], color="0.6", linewidth=0.8, zorder=edge[:, 2].min() - 1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    axes.margins(0.04)
    axes.autoscale_view()


def bonds(atoms: Atoms) -> NDArray[np.int64]:
    """Return bonds [n_bonds, 2], i < j: pairs closer than 1.3 times the sum of covalent radii.

    Distances are those to the nearest image.
    """
    # without charge and elements, which could be refused
    bare = Atoms("H" * len(atoms), atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    radii, system = covalent_radii[atoms.numbers], System.from_ase(bare)
    edges = neighbor_list(system, 2 * BOND * float(radii.max()))
    i, j = edges.receivers.numpy(), edges.senders.numpy()
    lengths = torch.linalg.vector_norm(edge_vectors(system, edges), dim=1).numpy()
    bonded = (i < j) & (lengths < BOND * (radii[i] + radii[j]))
    return np.unique(np.stack([i[bonded], j[bonded]], axis=1), axis=0)


def _in_one_piece(atoms: Atoms) -> NDArray[np.float64]:
    """Return positions [n, 3] Å with every molecule whole and its centre in the cell.

    Frameworks of bonds without end, as in a crystal, stay as they are.

    Args:
        atoms: periodic.
    """
    n, (i, j) = len(atoms), bonds(atoms).T
    graph = csr_array((np.ones(len(i)), (i, j)), shape=(n, n))
    _, molecule = connected_components(graph, directed=False)
    positions = atoms.positions.copy()
    for first in np.unique(molecule, return_index=True)[1]:
        order, parents = breadth_first_order(graph, first, directed=False)
        for k in order[1:]:
            step = atoms.positions[k] - atoms.positions[parents[k]]
            positions[k] = positions[parents[k]] + find_mic(step, atoms.cell, atoms.pbc)[0]
    gaps = positions[j] - positions[i]
    broken = ~np.isclose(np.linalg.norm(gaps, axis=1), find_mic(gaps, atoms.cell, atoms.pbc)[1])
    for number in np.unique(molecule):
        mine = molecule == number
        if number in molecule[i[broken]]:
            positions[mine] = atoms.positions[mine]
            continue
        centre = positions[mine].mean(0, keepdims=True)
        positions[mine] += wrap_positions(centre, atoms.cell, atoms.pbc) - centre
    return positions


def _turn(points: NDArray[np.float64], atoms: Atoms) -> NDArray[np.float64]:
    """Rotate points [n, 3] Å to the view: x to the right, y up, z towards the viewer."""
    if not atoms.pbc.any():
        centre = atoms.positions.mean(axis=0)
        axes = np.linalg.svd(atoms.positions - centre)[2]  # longest extent first
        return (points - centre) @ axes.T
    a, b = np.radians(TURN), np.radians(TILT)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return points @ about_z.T @ about_x.T


def _cell_edges(atoms: Atoms) -> NDArray[np.float64]:
    """Return the ends of the cell's edges, [12, 2, 3] Å; none for a molecule."""
    if not atoms.pbc.any() or atoms.cell.rank < 3:
        return np.zeros((0, 2, 3))
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    pairs = [
        (p, q) for p in corners for q in corners if (q - p).sum() == 1 and np.abs(q - p).sum() == 1
    ]
    return np.array(pairs) @ atoms.cell.array


def _sticks(
    axes: Axes, atoms: Atoms, turned: NDArray[np.float64], radii: NDArray[np.float64]
) -> None:
    """Draw the bonds, except for those that cross a boundary of the cell."""
    inside = atoms.copy()
    inside.pbc = False
    pairs = bonds(inside)
    if len(pairs) > MOST_STICKS * len(atoms):  # a metal
        return
    for pair in pairs:
        far, near = pair[np.argsort(turned[pair, 2])]
        along = turned[near] - turned[far]
        # it starts at the surface of the far ball, in front of it, and ends behind the near one
        start, end = turned[far] + 0.9 * radii[far] * along / np.linalg.norm(along), turned[near]
        flat = (end - start)[:2]
        if (length := np.linalg.norm(flat)) < 1e-6:
            continue
        side = np.array([-flat[1], flat[0]]) / length * STICK / 2
        corners = [start[:2] + side, end[:2] + side, end[:2] - side, start[:2] - side]
        axes.add_patch(
            Polygon(
                corners,
                facecolor="0.8",
                edgecolor="0.45",
                linewidth=0.7,
                zorder=turned[far, 2] + 1e-3,
            )
        )
