#!/usr/bin/env python
"""A So3krates that learns from every layer of a teacher of the same widths, not from labels alone.

    python benchmarks/studies/match_features.py models/so3krates-organic.yaml so3lr.safetensors \
        so3lr4.h5 -o runs/first.safetensors --minutes 28 0 --rate 3e-3 --threads 2
    python benchmarks/studies/match_features.py ... --start runs/first.safetensors \
        -o runs/second.safetensors --minutes 0 44 --rate 1.5e-3 --threads 2
    python benchmarks/studies/match_features.py ... --start runs/second.safetensors \
        -o runs/third.safetensors --minutes 0 10 --rate 6e-4 --threads 2
    python benchmarks/studies/match_features.py ... --start runs/third.safetensors \
        -o runs/fourth.safetensors --minutes 0 84 --rate 1.2e-3 --threads 2 --by-error
    python benchmarks/studies/match_features.py models/so3krates-organic.yaml so3lr.safetensors \
        phosphorus.h5 contacts.h5 so3lr6.h5 --start so3krates-organic \
        -o runs/fifth.safetensors --minutes 0 92 --rate 1e-3 --by-error
    python benchmarks/studies/match_features.py models/so3krates-organic.yaml so3lr.safetensors \
        rings.h5 phosphorus7.h5 so3lr4.h5 --structures 60000 --start so3krates-organic \
        -o runs/sixth.safetensors --minutes 0 85 --rate 8e-4 --by-error --element P 4 --element S 1.3

A teacher that is a So3krates as well says more than energies and forces. The student, of random
weights and the recipe's config, first learns each layer alone (first number of minutes): given the
teacher's features and Euclidean variables in front of a layer, its attention coefficients, its sums
of messages and what it passes on; its heads and its nuclear repulsion likewise. Then it learns
energies, forces, charges and Hirshfeld ratios of the data as a whole, with features and Euclidean
variables of each atom behind each layer beside them (second number). `attncalc train` gives it its
last touch and its card. The fifth command is a second training of the model that the first four
made, on other structures: those of `sample_more.py`, and of `attncalc sample --molecules 7000 --seed
6 --relax-steps 40`. The sixth is a third one, on `sample_more.py rings --molecules 1200 --seed 7`,
`sample_more.py phosphorus --molecules 4000 --seed 7` and the first data again.

With `--by-error` structures are drawn in proportion to the mean error of their forces at the start,
between half and three times the mean: the loss is a mean over atoms, so it hardly hears of an
element that is one atom in a hundred, as phosphorus, whose forces it gets most wrong.

`--element P 5` weighs the force errors of an element in the loss. From the shipped model, 70 minutes
of `--by-error --element P 5 --element S 1.5`, the mean of the weights and eight minutes of the recipe
changed P from 117 to 110 meV/Å and the mean of all from 33.9 to 34.1, so it was not shipped. With
the data of the sixth command P became 109 and the mean did not change.

`--small-forces 1` halves the weight of force errors at atoms whose label is 1 eV/Å. From the shipped
model, 85 minutes of it on `so3lr4.h5 rings.h5 phosphorus7.h5 --structures 90000` with `--element P 3
--element S 1.3`, the mean of the weights (0.5) and the recipe changed the mean of all from 33.5 to
33.0 meV/Å, P from 109 to 108, torsions by -1 to -2 meV.
These weights are not shipped, and neither are those of 46 minutes of it with `phosphorus8.h5 fresh.h5
so3lr4.h5 --structures 60000`, `--element P 4 --element S 1.3` and shares up to six times the mean:
after the mean of the weights (0.5), P was 106 and the mean of all 33.5 meV/Å, torsions were 0 to 2
meV worse. The new data are `sample_more.py phosphorus --molecules 4000 --seed 8` and `attncalc
sample --molecules 2800 --seed 77`.

Structures at minima did not help the minima. From the shipped model, 42 minutes with `--small-forces
1 --element P 4 --element S 1.3` on 60,000 structures of so3lr4.h5 and 16,768 of 3,507 molecules at
the model's minima, at the teacher's (both 0.01 eV/Å), half way and beyond, and the mean of the
weights (0.5): force MAE at such structures of 277 unseen molecules 26.9 to 26.1 meV/Å, test set 33.5
to 33.7, P 109 to 117; of 494 minima of the teacher 475 instead of 477 stay within 0.2 Å, though the
median fell from 0.0164 to 0.0152 Å. Before the mean it is 469 and 0.0141 Å. Those that move have
rare groups or soft torsions, and hardly change with the training: not these structures lack in the
data, but such molecules.

Hints from inner layers: Romero et al., FitNets, ICLR 2015; from attention: Zagoruyko & Komodakis,
ICLR 2017.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor, nn

from attncalc import load
from attncalc.data import Dataset, read
from attncalc.data.errors import predict
from attncalc.fast import lower
from attncalc.graph import AtomOutputs, Graph
from attncalc.kernels.collocation import collocated
from attncalc.model_file import NETWORKS, save
from attncalc.ops import with_modules
from attncalc.potential import Potential
from attncalc.train import Recipe
from attncalc.train import step as training_step
from attncalc.train.batches import join, samples
from attncalc.train.compilation import compiled_step
from attncalc.train.module import loss_of
from attncalc.train.select_step import unequal_sizes, with_distant_labels
from attncalc.train.soap import Soap
from attncalc.train.step import (
    Batch,
    Loss,
    Prediction,
    Step,
    eager_step,
    relative_error,
    trainable,
)

WARM, DECAY = 300, 0.999  # steps, of the moving average
SAVED_EVERY, TOLD_EVERY = 120.0, 60.0  # s
SHORTEST = 0.6  # Å, of `attncalc sample`
CLIP, LOWEST_RATE = 10.0, 1e-5
LARGEST_ERROR = 1e-3  # of the compiled step's gradient, a small difference near a teacher
SMALL = 0.01  # standard deviations; errors far below count by their squares
# of hints, each in standard deviations of the teacher's values: the last ones decide
WEIGHTS = {"energies": 2.0, "features 3": 2.0}
TYPICAL = 1.5  # eV/Å, norm of an atom's force
SHARES = 0.5, 3.0  # of structures that are drawn by their errors, of the mean


class WithHints(nn.Module):
    """A So3krates whose features are what it computes of each atom on the way, as one row.

    Args:
        potential: whose network and nuclear repulsion it has.
        spreads: of each quantity; ones if not given.
    """

    def __init__(self, potential: Potential, spreads: dict[str, float] | None = None) -> None:
        super().__init__()
        self.network = collocated(potential.network, SHORTEST)
        # in a tuple: the potential has it as a module of its own
        self.zbl = tuple(term for term in potential.pair_terms if hasattr(term, "inverse_length"))
        self.register_buffer("scale", potential.scale)
        self.register_buffer("reference", potential.reference_energies)
        self.spreads = spreads or {}
        self.config = potential.network.config
        self.reads_charge, self.reads_spin = True, False

    def forward(self, graph: Graph) -> AtomOutputs:
        """Outputs of the network, with hints [n_atoms, K] as features."""
        network = self.network
        geometry = network.geometry(graph)
        features, ev = network.embedding(graph), network.initial_ev(geometry, graph.n_atoms)
        found = {"features 0": features}
        for n, layer in enumerate(network.layers, 1):
            features, ev = layer(features, ev, geometry)
            found |= {f"features {n}": features, f"ev {n}": ev}
        del found[f"ev {len(network.layers)}"]  # nothing behind them reads them
        energies = network.head(features)
        in_eV = self.scale[graph.species] * energies + self.reference[graph.species]
        found["energies"] = (in_eV + self.zbl[0](graph, AtomOutputs(energies))).float().unsqueeze(1)
        charges = network.charge_head(features, graph)
        ratios = network.hirshfeld_head(features, graph)
        found |= {"charges": charges.unsqueeze(1), "ratios": ratios.unsqueeze(1)}
        hints = [
            value
            * (WEIGHTS.get(name, 1.0) / self.spreads.get(name, 1.0) / math.sqrt(value.shape[1]))
            for name, value in found.items()
        ]
        self.names = {name: value.shape[1] for name, value in found.items()}
        return AtomOutputs(energies, charges, ratios, torch.cat(hints, 1))

    def alone(
        self, graph: Graph, given: list[tuple[Tensor, Tensor | None]] | None = None
    ) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor | None]]]:
        """Values that each layer and head computes from what is given in front of it.

        Args:
            graph: of the structures.
            given: features and Euclidean variables in front of each layer and of the heads; the
                network's own if not given.

        Returns:
            The values by name, [n, columns], and what was in front of each layer and of the heads.
        """
        network = self.network
        geometry = network.geometry(graph)
        features, ev = network.embedding(graph), network.initial_ev(geometry, graph.n_atoms)
        found, inputs = {"embedding": features}, []
        for n, layer in enumerate(network.layers):
            features, ev = given[n] if given else (features, ev)
            inputs.append((features, ev))
            attention = layer.attention
            queries, keys, values = attention.project(features)
            of_pairs = attention.filters(ev, geometry), geometry.envelope
            ways = geometry.directions
            of_ways = [attention.coefficients(queries, keys, *of_pairs, way) for way in ways]
            sums = [
                attention.collect(*of_way, values, way)
                for of_way, way in zip(of_ways, ways, strict=True)
            ]
            d_features, d_ev = (one + other for one, other in zip(*sums, strict=True))
            features, ev = layer.refine(features + d_features, d_ev if ev is None else ev + d_ev)
            for_features, for_ev = (torch.cat(of_kind) for of_kind in zip(*of_ways, strict=True))
            found |= {
                f"coefficients {n}": for_features,
                f"ev coefficients {n}": for_ev,
                f"messages {n}": d_features,
                f"ev messages {n}": d_ev,
                f"features {n}": features,
                f"ev {n}": ev,
            }
        del found[f"ev {n}"]  # nothing behind the last layer reads them
        features, _ = given[-1] if given else (features, None)
        inputs.append((features, None))
        energies = network.head(features)
        of_atoms = {
            "energies": self.scale[graph.species] * energies + self.reference[graph.species],
            "charges": network.charge_head(features, graph),
            "ratios": network.hirshfeld_head(features, graph),
            "repulsion": self.zbl[0](graph, AtomOutputs(energies)),
        }
        return found | {name: of.float().unsqueeze(1) for name, of in of_atoms.items()}, inputs


def main() -> None:
    """Train for so many minutes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="whose config, pair terms and weights count")
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs=2, default=(30.0, 60.0))
    parser.add_argument("--edges", type=int, default=4500, help="of a step")
    parser.add_argument("--rate", type=float, help="of learning; 3e-3 without forces, else 1e-3")
    parser.add_argument("--hint-weight", type=float, default=0.1, help="beside forces")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--structures", type=int, help="of each file, at most")
    parser.add_argument("--start", help="a student to go on with")
    parser.add_argument("--by-error", action="store_true", help="draw structures by their errors")
    parser.add_argument("--element", nargs=2, action="append", default=[], help="and its weight")
    parser.add_argument(
        "--small-forces", type=float, default=math.inf, help="eV/Å at which errors count half"
    )
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    teacher = load(asked.teacher, device="cpu").requires_grad_(False)
    recipe = Recipe.from_yaml(asked.recipe)
    parts = [part_of(read(file), asked.structures) for file in asked.data]
    for file, part in zip(asked.data, parts, strict=True):
        print(f"{file.name}: {len(part)} structures", flush=True)
    batches = [batch for part in parts for batch in batches_of(part, teacher, recipe)]
    student = (
        load(asked.start, device="cpu").requires_grad_(True)
        if asked.start
        else new_student(recipe, teacher, batches)
    )
    shares = shares_by_error(student, parts) if asked.by_error else np.ones(len(batches))
    weigh_forces(
        student.species, {name: float(w) for name, w in asked.element}, asked.small_forces
    )
    Matching(student, teacher, batches, loss_of(recipe), shares, asked).run()


def weigh_forces(
    species: tuple[int, ...], weights: dict[str, float], half: float = math.inf
) -> None:
    """Weigh errors of forces in all losses from now on.

    Args:
        species: atomic numbers of the model.
        weights: by element; 1 for others.
        half: norm of an atom's label, eV/Å, at which its errors count half as much as at a minimum.
    """
    row = torch.tensor([weights.get(chemical_symbols[z], 1.0) for z in species])
    plain = training_step.loss

    def weighted(prediction: Prediction, batch: Batch, weights: Loss) -> Tensor:
        errors = prediction.forces - batch.forces
        factor = row[batch.graph.species].unsqueeze(1).to(errors)
        typical = 1 + TYPICAL / half  # so that the sum of all stays about what it is
        factor = factor * typical / (1 + batch.forces.norm(dim=1, keepdim=True) / half)
        return plain(prediction._replace(forces=batch.forces + errors * factor), batch, weights)

    training_step.loss = weighted


def part_of(dataset: Dataset, n_structures: int | None) -> Dataset:
    """Structures of a data set in random order, at most so many."""
    order = np.random.default_rng(0).permutation(len(dataset))[:n_structures]
    return dataset[order.tolist()]


def shares_by_error(student: Potential, parts: list[Dataset]) -> NDArray[np.float64]:
    """Mean number of times that each structure is drawn when all are drawn once on average."""
    lowered = lower(copy.deepcopy(student))  # it takes the gradients of what it is given
    errors = np.array(
        [
            np.abs(f - label).mean()
            for part in parts
            for f, label in zip(predict(lowered, part).forces, part.forces, strict=True)
        ]
    )
    shares = np.clip(errors / errors.mean(), *SHARES)
    print(f"errors of forces: {1e3 * errors.mean():.1f} meV/Å", flush=True)
    return shares / shares.mean()


def batches_of(dataset: Dataset, teacher: Potential, recipe: Recipe) -> list[Batch]:
    """Structures of a data set with their neighbours and labels."""
    return list(
        samples(
            dataset,
            teacher.cutoff,
            teacher.species,
            long_range=teacher.long_range_for,
            labels=recipe.output_labels,
        )
    )


def new_student(recipe: Recipe, teacher: Potential, batches: list[Batch]) -> Potential:
    """A potential of random weights whose energies of atoms have the teacher's means."""
    theirs = teacher.network.config
    config = recipe.network_config(lambda: theirs.avg_num_neighbors)
    for name in ("cutoff", "num_features", "degrees", "num_layers"):
        if getattr(config, name) != getattr(theirs, name):
            raise SystemExit(f"{name} is another than the teacher's, {getattr(theirs, name)}")
    graph = join(batches[:2000]).graph
    of_teacher = WithHints(teacher)
    with torch.no_grad():
        row = of_teacher(graph).features[:, -3] / WEIGHTS["energies"]
        spread = of_teacher.network.embedding(graph).std()
    means = [row[graph.species == n].mean().item() for n in range(len(teacher.species))]
    network = NETWORKS[recipe.network][0](config, len(teacher.species))
    with torch.no_grad():  # ten times as large ones would take minutes to shrink
        network.embedding.element.mul_(spread / network.embedding.element.std())
    terms = recipe.pair_term_modules(teacher.species)
    return Potential(network, teacher.species, pair_terms=terms, reference_energies=means)


class Matching:
    """Training of a student on a teacher's layers."""

    def __init__(
        self,
        student: Potential,
        teacher: Potential,
        batches: list[Batch],
        weights: Loss,
        shares: NDArray[np.float64],
        asked: Any,
    ) -> None:
        self.shares = shares
        self.student, self.asked, self.batches = student, asked, batches
        self.n_edges = np.array([batch.graph.n_edges for batch in batches])
        spreads = self._spreads(teacher)
        self.of_teacher = WithHints(teacher, spreads)
        network = WithHints(student, spreads)
        self.of_student = network
        self.with_hints = with_modules(student, network=network)
        hints = {"features": asked.hint_weight}
        self.weights = replace(weights, of_outputs={**weights.of_outputs, **hints})
        self.parameters = list(trainable(student).values())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = Soap(self.parameters, lr=1e-3)
        with torch.no_grad():
            found, _ = self.of_teacher.alone(join(batches[:600]).graph)
        self.lengths = {
            # of all columns together: those of single ones may be next to nothing
            name: value.std(0).square().sum().sqrt().item()
            for name, value in found.items()
        }
        self.n, self.order = 0, np.zeros(0, int)
        self.random = np.random.default_rng(0)

    def _spreads(self, teacher: Potential) -> dict[str, float]:
        graph = join(self.batches[:1500]).graph
        found = WithHints(teacher)
        with torch.no_grad():
            row = found(graph).features
        spreads, start = {}, 0
        for name, n in found.names.items():
            part = row[:, start : start + n] * (math.sqrt(n) / WEIGHTS.get(name, 1.0))
            # of all columns together: those of single ones may be next to nothing
            spreads[name] = part.std(0).square().mean().sqrt().item()
            start += n
        return spreads

    def run(self) -> None:
        """Take the steps of both parts, and write the averaged weights."""
        first, second = (60 * minutes for minutes in self.asked.minutes)
        if first:
            self._part(first, self._layers_alone, self.asked.rate or 3e-3)
            self._fill(self.average)
        if second:
            self._part(second, self._forces_too(), self.asked.rate or 1e-3)
        self._save()

    def _part(self, length: float, step: Callable[[Batch], Any], highest: float) -> None:
        """Train by one step for so many seconds, by a cosine of the learning rate."""
        sums: dict[str, float] = {}
        begin = told = saved = time.monotonic()
        while (now := time.monotonic()) < begin + length:
            cosine = (1 + math.cos(math.pi * (now - begin) / length)) / 2
            for group in self.optimizer.param_groups:
                rate = LOWEST_RATE + (highest - LOWEST_RATE) * cosine
                group["lr"] = rate * min(1.0, (self.n + 1) / WARM)
            errors, gradients = step(self._batch())
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            # one that is not finite would spoil all weights
            if torch.nn.utils.clip_grad_norm_(self.parameters, CLIP).isfinite():
                self.optimizer.step()
                self.n += 1
                decay = min(DECAY, (1 + self.n) / (10 + self.n))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
                for name, value in (errors | {"steps": 1.0}).items():
                    sums[name] = sums.get(name, 0.0) + value
            if now - told > TOLD_EVERY:
                words = [f"{name} {value / sums['steps']:.4f}" for name, value in sums.items()]
                print(f"{now - begin:.0f} s, step {self.n}:", *words[:-1], flush=True)
                told, sums = now, {}
            if now - saved > SAVED_EVERY:
                self._save()
                saved = now

    def _batch(self) -> Batch:
        chosen: list[int] = []
        edges = 0
        while True:
            if not len(self.order):
                times = np.floor(self.shares + self.random.random(len(self.shares))).astype(int)
                self.order = self.random.permutation(np.repeat(np.arange(len(times)), times))
            k = int(self.order[0])
            if chosen and edges + self.n_edges[k] > self.asked.edges:
                return join([self.batches[k] for k in chosen])
            chosen.append(k)
            edges += int(self.n_edges[k])
            self.order = self.order[1:]

    def _wanted(self, graph: Graph) -> Tensor:
        with torch.no_grad():
            return self.of_teacher(graph).features

    def _layers_alone(self, batch: Batch) -> tuple[dict[str, float], list[Tensor]]:
        """Mean length of the errors of each quantity, in standard deviations of the teacher's."""
        with torch.no_grad():
            wanted, given = self.of_teacher.alone(batch.graph)
        found, _ = self.of_student.alone(batch.graph, given)
        errors = {
            name: (((found[name] - wanted[name]) / length).square().sum(1) + SMALL**2).sqrt().mean()
            for name, length in self.lengths.items()
        }
        gradients = torch.autograd.grad(
            torch.stack(list(errors.values())).sum(),
            self.parameters,
            allow_unused=True,
            materialize_grads=True,
        )
        return {name: error.item() for name, error in errors.items()}, list(gradients)

    def _forces_too(self) -> Callable[[Batch], Any]:
        examples = [unequal_sizes(self.batches), join(self.batches[:20])]
        examples = [replace(one, features=self._wanted(one.graph)) for one in examples]
        examples = [with_distant_labels(one, self.weights) for one in examples]
        plain = eager_step(self.with_hints, self.weights)
        step: Step = compiled_step(self.with_hints, self.weights, examples)
        error = max(relative_error(step, plain, one) for one in examples)
        print(f"compiled step: gradient within {error:.1e}", flush=True)
        if not error < LARGEST_ERROR:
            raise SystemExit("the compiled step is wrong")
        # the same parameters, in the order in which the network with hints names them
        numbers = {id(p): k for k, p in enumerate(trainable(self.with_hints).values())}
        place = [numbers[id(p)] for p in self.parameters]

        def forces_too(batch: Batch) -> tuple[dict[str, float], list[Tensor]]:
            value, gradients = step(replace(batch, features=self._wanted(batch.graph)))
            return {"loss": value.item()}, [gradients[k] for k in place]

        return forces_too

    def _save(self) -> None:
        kept = [p.detach().clone() for p in self.parameters]
        self._fill(self.average)
        save(self.student, self.asked.output)
        self._fill(kept)

    def _fill(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)


if __name__ == "__main__":
    main()
