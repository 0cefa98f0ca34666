"""Noise: the published random numbers, normal, and a function of names alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attncalc.md import noise
from attncalc.md.noise import normal_noise, philox

# known answers that come with the authors' code (Random123, philox4x32-10)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def of_sizes(
    *sizes: int, seed: int = 5, step: int = 7, replicas: list[int] | None = None
) -> Tensor:
    system_idx = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    atoms = torch.cat([torch.arange(n) for n in sizes])
    names = torch.arange(len(sizes)) if replicas is None else torch.tensor(replicas)
    return normal_noise(seed, step, names, system_idx, atoms)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected) -> None:
    words = philox(*(tuple(torch.tensor([word]) for word in words) for words in (counter, key)))
    assert tuple(int(word) for word in words) == expected


def test_the_loop_is_the_tensor_program(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"seed": 2**32 - 1, "step": 2**40 + 3, "replicas": [0, 2**32 - 1]}
    compiled = of_sizes(50, 30, **where)
    monkeypatch.setattr(noise, "cpu_loops", lambda _: None)
    assert (compiled - of_sizes(50, 30, **where)).abs().amax() < 1e-14


def test_normal_and_independent() -> None:
    numbers = torch.stack([of_sizes(2000, step=step) for step in range(50)])  # [50, 2000, 3]
    n = numbers.numel()
    assert abs(float(numbers.mean())) < 4 / n**0.5
    assert abs(float(numbers.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((numbers**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    for one, other in (
        (numbers[1:], numbers[:-1]),  # neighbouring steps
        (numbers[:, 1:], numbers[:, :-1]),  # neighbouring atoms
        (numbers[..., 1:], numbers[..., :-1]),  # components
        (numbers, torch.stack([of_sizes(2000, seed=6, step=step) for step in range(50)])),
        (numbers, torch.stack([of_sizes(2000, step=s, replicas=[1]) for s in range(50)])),
    ):
        assert abs(float((one * other).mean())) < 4 / one.numel() ** 0.5


def test_a_system_has_its_noise_whatever_else_is_in_the_batch() -> None:
    together = of_sizes(9, 21, 3, replicas=[4, 8, 15])
    for part, name in zip(together.split([9, 21, 3]), [4, 8, 15], strict=True):
        assert torch.equal(part, of_sizes(len(part), replicas=[name]))
