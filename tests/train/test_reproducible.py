"""The switch of PyTorch that orders sums: on inside, as before outside."""

import warnings

import pytest
import torch

from attncalc.train.reproducible import ordered_sums


def switches() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize(
    ("device", "inside"), [("cpu", (False, False, True)), ("cuda", (True, True, False))]
)
def test_switches_are_put_back(device, inside):
    before = switches()
    assert before == (False, False, True)
    seen = []

    def interrupted() -> None:
        with ordered_sums(torch.device(device)):
            seen.append(switches())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [inside]
    assert switches() == before


def test_only_the_warning_about_products_is_silent():
    about_products = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` "
        "or `at::Context::setDeterministicAlgorithms(true)`, but this operation is not "
        "deterministic because it uses CuBLAS and you have CUDA >= 10.2."
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ordered_sums(torch.device("cuda")):
            warnings.warn(about_products, stacklevel=1)
            warnings.warn("foo does not have a deterministic implementation", stacklevel=1)
    assert [str(w.message)[:3] for w in caught] == ["foo"]
