"""Electrostatics and dispersion with fixed parameters on a GPU: one kernel; autograd needs 290.

`GPUFrozenLongRange` equals the sum of an `attncalc.physics.electrostatics.DampedElectrostatics` and
an `attncalc.physics.dispersion.Dispersion` of the same range, or one of the two.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attncalc.graph import AtomOutputs, Graph, LinearizedTerm, SummedGradient
from attncalc.kernels.frozen_long_range import Constants, FrozenLongRange
from attncalc.kernels.gpu.formulas import rounded, store_sums
from attncalc.kernels.gpu.launching import Workspace, launch, order_of
from attncalc.kernels.gpu.sums import sum_of_systems

# edges of a block in the loop over the edges of an atom
BLOCK = 128


@triton.jit(do_not_specialize=["n_species", "n_rows"])
def interact(
    vectors,
    senders,
    mask,
    rows,
    species,
    charges,
    ratios,
    free,
    c6,
    table,
    numbers,
    energies,
    forces,
    virials,
    by_charges,
    by_ratios,
    n_species,
    n_rows,
    B: tl.constexpr,
):
    """Sum over the edges of an atom, with the formulas of `attncalc.kernels.long_range_loop`.

    Args:
        vectors .. mask, species: of the graph.
        rows: [n_atoms + 1], where the edges of an atom begin.
        charges, ratios: [n_atoms].
        free, c6, table, numbers: see `long_range_loop.of_list`; `table` has n_rows rows.
        energies: [n_atoms] eV, stored: half of the energies of an atom's pairs.
        forces: [n_atoms, 3] eV/Å, stored.
        virials: [n_atoms, 9] eV, stored: half of vector (x) gradient, summed over its pairs.
        by_charges, by_ratios: [n_atoms], stored.
    """
    i = tl.program_id(0)
    first, last = tl.load(rows + i), tl.load(rows + i + 1)
    a = tl.load(species + i)
    charge = tl.load(charges + i).to(tl.float64)
    ratio = tl.load(ratios + i).to(tl.float64)
    of_free = tl.load(free + a)
    alpha_here = tl.maximum(of_free * ratio, tl.load(numbers + 10))
    per_square, per_root = tl.load(numbers), tl.load(numbers + 1)
    w0, w1 = tl.load(numbers + 2), tl.load(numbers + 3)
    w2, w3 = tl.load(numbers + 4), tl.load(numbers + 5)
    coulomb, per_length = tl.load(numbers + 6), tl.load(numbers + 7)
    reach, furthest = tl.load(numbers + 8), tl.load(numbers + 9)
    energy, d_charge = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    d_alpha, d_ratio = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    fx, fy, fz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    xx, yy, zz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    xy, xz, yz = tl.zeros([B], tl.float64), tl.zeros([B], tl.float64), tl.zeros([B], tl.float64)
    for start in range(first, last, B):
        e = start + tl.arange(0, B)
        counts = (e < last) & (tl.load(mask + e, mask=e < last, other=0) != 0)
        wide = e.to(tl.int64)
        x = tl.load(vectors + 3 * wide, mask=counts, other=1.0)
        y = tl.load(vectors + 3 * wide + 1, mask=counts, other=0.0)
        z = tl.load(vectors + 3 * wide + 2, mask=counts, other=0.0)
        square = x * x + y * y + z * z
        counts = counts & ~(square >= furthest)  # NaN counts, and stays NaN
        square = tl.where(counts, square, 1.0)
        d = tl.sqrt(square)
        j = tl.load(senders + e, mask=counts, other=0)
        b = tl.load(species + j)
        charge_there = tl.load(charges + j).to(tl.float64)
        ratio_there = tl.load(ratios + j).to(tl.float64)
        alpha_there = tl.maximum(tl.load(free + b) * ratio_there, tl.load(numbers + 10))

        t = d * per_length
        row = tl.where(t < n_rows, t, n_rows - 1.0).to(tl.int32)
        t -= row.to(tl.float64)
        at = table + 8 * row.to(tl.int64)
        c1, c2, c3 = tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
        shared = tl.load(at) + t * (c1 + t * (c2 + t * c3))
        slope = (c1 + t * (2 * c2 + t * (3 * c3))) * per_length
        is_far = d >= reach  # charges are points there
        shared = tl.where(is_far, 1 / d, shared)
        slope = tl.where(is_far, -shared * shared, slope)
        c5, c6th, c7 = tl.load(at + 5), tl.load(at + 6), tl.load(at + 7)
        fade = tl.load(at + 4) + t * (c5 + t * (c6th + t * c7))
        fade_slope = (c5 + t * (2 * c6th + t * (3 * c7))) * per_length

        alpha = 0.5 * (alpha_here + alpha_there)
        u = tl.exp(tl.log(alpha) / 7)
        inverse = per_root / (u * u)
        v = square * per_square * inverse
        v2 = v * v
        v4 = v2 * v2
        t6, t8, t10 = 1 / (1 + v2 * v), 1 / (1 + v4), 1 / (1 + v4 * v)
        s = w0 + u * (w1 + u * (w2 + u * w3))
        c8 = 10 * s * s * inverse
        c10 = 1.225 * c8 * c8
        i6 = inverse * inverse * inverse
        powers = i6 * (t6 + c8 * t8 + c10 * t10)
        by_v = -i6 * (3 * v2 * t6 * t6 + c8 * 4 * v2 * v * t8 * t8 + c10 * 5 * v4 * t10 * t10)
        width = u * (w1 + u * (2 * w2 + u * (3 * w3))) / s
        by_root = i6 * (c8 * t8 + 2 * c10 * t10) * (2 * width - 2) - 6 * powers - 2 * v * by_v
        pulled = -tl.load(c6 + a * n_species + b)
        pulled_here = pulled * ratio * ratio_there
        product = coulomb * charge * charge_there
        of_pair = product * shared + pulled_here * fade * powers
        per_vector = (product * slope + pulled_here * powers * fade_slope) / d
        per_vector += pulled_here * fade * 2 * by_v * inverse * per_square

        per_vector = tl.where(counts, per_vector, 0.0)
        energy += tl.where(counts, rounded(of_pair), 0.0)
        d_charge += tl.where(counts, rounded(coulomb * shared * charge_there), 0.0)
        d_alpha += tl.where(counts, rounded(pulled_here * fade * by_root / (14 * alpha)), 0.0)
        d_ratio += tl.where(counts, rounded(pulled * ratio_there * fade * powers), 0.0)
        gx, gy, gz = per_vector * x, per_vector * y, per_vector * z
        fx += rounded(gx)
        fy += rounded(gy)
        fz += rounded(gz)
        xx += rounded(x * gx)
        yy += rounded(y * gy)
        zz += rounded(z * gz)
        xy += rounded(x * gy)
        xz += rounded(x * gz)
        yz += rounded(y * gz)
    tl.store(energies + i, 0.5 * tl.sum(energy))
    tl.store(by_charges + i, tl.sum(d_charge))
    tl.store(by_ratios + i, tl.sum(d_ratio) + of_free * tl.sum(d_alpha))
    store_sums(
        *(forces, virials, i, fx, fy, fz, 0.5 * xx, 0.5 * yy, 0.5 * zz),
        *(0.5 * xy, 0.5 * xz, 0.5 * yz),
    )


class GPUFrozenLongRange(FrozenLongRange):
    """Replacement for electrostatics, dispersion or both on a GPU, with fixed parameters.

    Args:
        electrostatics, dispersion, constants: see `FrozenLongRange`.
    """

    def __init__(self, electrostatics: Any, dispersion: Any, constants: Constants) -> None:
        super().__init__(electrostatics, dispersion, constants)
        names = ("free", "c6", "table", "numbers")
        self.arrays = dict(zip(names, map(torch.from_numpy, self.arguments), strict=True))

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if self.arrays["free"].device != device:
            self.arrays = {name: value.to(device) for name, value in self.arrays.items()}
        return self.arrays

    @torch.no_grad()
    def linearize(self, graph: Graph, outputs: AtomOutputs) -> LinearizedTerm:
        """Return energies, forces, strain gradient, dE / d charges and dE / d ratios."""
        n, device = graph.n_atoms, graph.vectors.device
        known, workspace = self._on(device), Workspace(device)
        charges = outputs.required("charges") if self.reads_charges else None
        ratios = outputs.required("hirshfeld_ratios") if self.reads_ratios else None
        found = {
            "energies": workspace.double(n),
            "forces": workspace.double(n, 3),
            "virials": workspace.double(n, 9),
            "by_charges": workspace.double(n),
            "by_ratios": workspace.double(n),
        }
        with torch.cuda.device_of(graph.vectors):
            launch(
                interact,
                (n,),
                known,
                found,
                vectors=graph.vectors.contiguous(),
                senders=graph.senders.contiguous(),
                mask=graph.edge_mask.contiguous(),
                rows=order_of(graph).rows,
                species=graph.species.contiguous(),
                charges=graph.vectors.new_zeros(n) if charges is None else charges.contiguous(),
                ratios=graph.vectors.new_ones(n) if ratios is None else ratios.contiguous(),
                n_species=len(known["c6"]),
                n_rows=len(known["table"]),
                B=BLOCK,
            )
        strain = sum_of_systems(found["virials"], graph)
        by_outputs = {}
        if charges is not None:
            by_outputs["charges"] = found["by_charges"]
        if ratios is not None:
            by_outputs["hirshfeld_ratios"] = found["by_ratios"]
        return LinearizedTerm(
            found["energies"], SummedGradient(found["forces"], strain), by_outputs
        )
