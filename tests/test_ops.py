"""Singular points: empty sets, zero vectors, and constants that go through other dtypes."""

import pytest
import torch

from attncalc.ops import ModuleWithConstants, safe_norm, segment_sum


def test_segment_sum_adds_rows_and_leaves_empty_segments_zero():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    sums = segment_sum(values, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_segment_sum_of_nothing(shape):
    values = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    sums = segment_sum(values, torch.zeros(0, dtype=torch.int64), 2)
    assert sums.shape == (2, *shape[1:])
    assert sums.dtype == torch.float64
    assert not sums.any()
    sums.sum().backward()
    assert values.grad.shape == shape


def test_segment_sum_is_twice_differentiable():
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 0, 2, 1, 2])
    assert torch.autograd.gradgradcheck(lambda v: segment_sum(v, index, 3).pow(3), (values,))


def test_safe_norm_is_the_length():
    vectors = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1e-12, 0.0, 0.0]])
    torch.testing.assert_close(safe_norm(vectors), torch.tensor([5.0, 0.0, 1e-12]))
    assert safe_norm(torch.zeros(0, 3)).shape == (0,)
    assert safe_norm(torch.ones(2, 4, 9)).tolist() == [[3.0] * 4] * 2


def test_safe_norm_has_gradient_zero_at_the_zero_vector():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(safe_norm(vectors).sum(), vectors, create_graph=True)
    assert gradient[0].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(gradient[1], torch.tensor([0.0, 0.6, 0.8]))
    (second,) = torch.autograd.grad(gradient.pow(2).sum(), vectors)
    assert second.isfinite().all()


def test_safe_norm_is_twice_differentiable():
    vectors = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(safe_norm, (vectors,))
    assert torch.autograd.gradgradcheck(safe_norm, (vectors,))


def test_constants_come_back_from_float32_unrounded():
    exact = torch.tensor([1 / 3], dtype=torch.float64)
    module = ModuleWithConstants()
    module.register_constant("third", exact)
    assert module.float().third.dtype == torch.float32
    assert torch.equal(module.third, exact.float())
    assert torch.equal(module.double().third, exact)
    assert module.state_dict() == {}


def test_constants_stay_where_the_module_was_moved():
    module = ModuleWithConstants()
    module.register_constant("third", torch.tensor([1 / 3], dtype=torch.float64))
    assert module.to("meta").float().third.device.type == "meta"
