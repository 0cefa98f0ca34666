"""Edges within the cutoff: frames, radial basis, envelope; and the gradient of edge vectors."""

import math
from typing import NamedTuple

from attncalc.kernels.equiformer.layout import Doubles, Floats, Integers
from attncalc.kernels.equiformer.places import matrix
from attncalc.kernels.simd.barrier import forget_ghosts, row_for
from attncalc.kernels.simd.loops import ZERO, inner_loop, stays_whole
from attncalc.kernels.simd.products import add_product


class Edges(NamedTuple):
    """Edges that count, in the order of the graph's: sorted by receiver.

    Attributes:
        first: [n_atoms + 1], the first edge of every receiver.
        i, j, which: [n_edges], receivers, senders, index in the graph.
        to: [n_edges], rows that contributions to j are added to.
        vectors: [n_edges, 3] Å. lengths: [n_edges] Å.
        envelope, envelope_slope: [n_edges], c and dc/dd.
        basis, basis_slope: [n_edges, num_basis filled up to 16], b and db/dd.
        frames: [n_edges, columns of all D_l].
        d_envelope: [n_edges], d_basis [n_edges, ..]: gradients.
        d_turn: [n_edges, 2]: gradient with respect to a rotation of the frame, given by how far the
            pole moves to +x and +z of the frame.
    """

    first: Integers
    i: Integers
    j: Integers
    which: Integers
    to: Integers
    vectors: Doubles
    lengths: Doubles
    envelope: Doubles
    envelope_slope: Doubles
    basis: Floats
    basis_slope: Floats
    frames: Floats
    d_envelope: Doubles
    d_basis: Floats
    d_turn: Doubles


class Radial(NamedTuple):
    """Tables and numbers for functions of the edge length.

    Attributes:
        cutoff: Å.
        shortest: Å; shorter edges are refused.
        smooth: whether edges fade at the cutoff.
        centres, widths: [num_basis].
    """

    cutoff: float
    shortest: float
    smooth: bool
    centres: Doubles
    widths: Doubles


@inner_loop
def collect(barrier, n_atoms, vectors, receivers, senders, mask, radial, edges):
    """Keep the edges that count; return their number, or -1 if one is too short.

    Args:
        barrier: that of this thread.
    """
    stays_whole()
    forget_ghosts(barrier)
    n, atom, cutoff = 0, 0, radial.cutoff
    for e in range(len(receivers)):
        if not mask[e]:
            continue
        i, x, y, z = receivers[e], vectors[e, 0], vectors[e, 1], vectors[e, 2]
        d = math.sqrt(x * x + y * y + z * z)
        if radial.smooth and d >= cutoff:
            continue
        edges.to[n] = row_for(barrier, senders[e])
        if d < radial.shortest:
            return -1
        while atom <= i:
            edges.first[atom] = n
            atom += 1
        edges.i[n], edges.j[n], edges.which[n], edges.lengths[n] = i, senders[e], e, d
        edges.vectors[n, 0], edges.vectors[n, 1], edges.vectors[n, 2] = x, y, z
        edges.envelope[n], edges.envelope_slope[n] = 1.0, 0.0
        if radial.smooth:  # 1 - 6 s^5 + 15 s^4 - 10 s^3
            s = d / cutoff
            rest = 1 - s
            edges.envelope[n] = rest * rest * rest * (1 + s * (3 + 6 * s))
            edges.envelope_slope[n] = -30 * s * s * rest * rest / cutoff
        radial_basis(d, radial, edges.basis, edges.basis_slope, n)
        edges.d_envelope[n], edges.d_turn[n, 0], edges.d_turn[n, 1] = 0.0, 0.0, 0.0
        n += 1
    while atom <= n_atoms:
        edges.first[atom] = n
        atom += 1
    edges.d_basis[:n] = ZERO
    return n


@inner_loop
def radial_basis(d, radial, basis, slope, row):
    """Compute `attncalc.basis.radial.ExpNormalBasis` and its derivative."""
    fade, fade_slope = 0.0, 0.0
    if not d >= radial.cutoff:  # NaN too
        angle = math.pi * d / radial.cutoff
        fade, fade_slope = (1 + math.cos(angle)) / 2, -math.pi / radial.cutoff / 2 * math.sin(angle)
    near = math.exp(-d)
    for k in range(len(radial.centres)):
        offset, width = near - radial.centres[k], radial.widths[k]
        bell = math.exp(-width * offset * offset)
        basis[row, k] = fade * bell
        slope[row, k] = bell * (fade_slope + fade * 2 * width * offset * near)


@inner_loop
def frames_of(first, last, layout, w, edges, outer, raised):
    """Fill the frames of some edges, see `attncalc.basis.edge_frames`.

    Args:
        outer: [n, (3 (2 lmax - 1))^2], working space.
        raised: [n, (2 lmax + 1)^2 filled up to 16], working space.
    """
    stays_whole()
    n_degrees, frames = len(layout.channels), edges.frames
    for e in range(first, last):
        d, at = edges.lengths[e], layout.frame[1]
        x, y, z = edges.vectors[e, 0] / d, edges.vectors[e, 1] / d, edges.vectors[e, 2] / d
        turn = -1.0 if y < 0 else 1.0
        y, z = y * turn, z * turn
        t = 1 / (1 + y)
        xz = -x * z * t
        frames[e, at], frames[e, at + 1] = x, (1 - (x * x + z * z) * t) * turn
        frames[e, at + 2], frames[e, at + 3] = z * turn, xz
        frames[e, at + 4], frames[e, at + 5] = -z * turn, (1 - z * z * t) * turn
        frames[e, at + 6], frames[e, at + 7] = 1 - x * x * t, -x * turn
        frames[e, at + 8] = xz * turn
    for l in range(2, n_degrees):
        below, one, many = layout.frame[l - 1], layout.frame[1], 2 * l - 1
        for e in range(first, last):
            k = 0
            for a in range(many):
                for b in range(3):
                    for c in range(many):
                        factor = frames[e, below + many * a + c]
                        for f in range(3):
                            outer[e - first, k] = factor * frames[e, one + 3 * b + f]
                            k += 1
        w_l = matrix(w.flat, w.raise_frames[l])
        raised[: last - first, : w_l.shape[1]] = ZERO
        add_product(last - first, outer, 0, w_l, raised, 0)
        at = layout.frame[l]
        for e in range(first, last):
            for k in range((2 * l + 1) ** 2):
                frames[e, at + k] = raised[e - first, k]


@inner_loop
def gradient_by_vectors(n, edges, frame, d_vectors):
    """Add dE / d vectors of the edges, from the gradients collected in `edges`.

    Args:
        frame: column of D_1.
    """
    stays_whole()
    for e in range(n):
        d = edges.lengths[e]
        along = edges.d_envelope[e] * edges.envelope_slope[e]
        for k in range(edges.basis.shape[1]):
            along += edges.d_basis[e, k] * edges.basis_slope[e, k]
        # in the edge's frame: across the edge from its rotation, along it from its length
        to_x, to_z = edges.d_turn[e, 0] / d, edges.d_turn[e, 1] / d
        x, y, z = edges.vectors[e, 0], edges.vectors[e, 1], edges.vectors[e, 2]
        fx, fy, fz = frame + 3, frame + 4, frame + 5
        gx = along * x / d + to_z * edges.frames[e, fx] + to_x * edges.frames[e, fx + 3]
        gy = along * y / d + to_z * edges.frames[e, fy] + to_x * edges.frames[e, fy + 3]
        gz = along * z / d + to_z * edges.frames[e, fz] + to_x * edges.frames[e, fz + 3]
        k = edges.which[e]
        d_vectors[k, 0] += gx
        d_vectors[k, 1] += gy
        d_vectors[k, 2] += gz
