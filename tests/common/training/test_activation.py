"""ReLU^2 against autograd's own of the same formula: the value, all derivatives, and what is kept in between."""
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.training.activation import relu_squared


def plain(x):
    return F.relu(x) ** 2


def given(dtype=torch.float64):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x[0, :2] = 0  # where only convention says what the derivative of ReLU is
    return x.requires_grad_()


def value_and_gradient(function, x):
    y = function(x)
    return y, torch.autograd.grad(y, x, torch.ones_like(y).cumsum(dim=0))[0]  # of different numbers


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient_are_autograds(dtype):
    x = given(dtype)
    for ours, theirs in zip(value_and_gradient(relu_squared, x), value_and_gradient(plain, x)):
        torch.testing.assert_close(ours, theirs)


def test_second_and_third_derivatives_are_right():
    x = given()[1:].detach().requires_grad_()  # finite differences need a derivative at each place
    assert torch.autograd.gradgradcheck(relu_squared, x)
    weights = torch.arange(1.0, 25, dtype=torch.float64).view(4, 6)

    def third(function):
        x, found = given(), []
        gradient = function(x) * x  # a product, so that no derivative is constant
        for _ in range(3):
            gradient, = torch.autograd.grad((gradient * weights).sum(), x, create_graph=True)
            found.append(gradient)
        return found
    for ours, theirs in zip(third(relu_squared), third(plain)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compiled_it_is_the_same(backend):
    torch.compiler.reset()
    compiled = torch.compile(lambda x: relu_squared(x), backend=backend, fullgraph=True)
    for ours, theirs in zip(value_and_gradient(compiled, given()), value_and_gradient(plain, given())):
        torch.testing.assert_close(ours, theirs)


def test_recomputed_in_the_backward_pass_it_is_the_same():
    def recomputed(x):
        return checkpoint(lambda x: relu_squared(2 * x), x, use_reentrant=False)
    for ours, theirs in zip(value_and_gradient(recomputed, given()),
                            value_and_gradient(lambda x: plain(2 * x), given())):
        torch.testing.assert_close(ours, theirs)


def test_one_tensor_is_kept_and_under_autocast_nothing_leaves_16_bits():
    kept, x = [], given(torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        hidden = x @ torch.ones(6, 6, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = relu_squared(hidden)
    assert [(t.dtype, t.shape) for t in kept] == [(torch.bfloat16, x.shape)] and y.dtype == torch.bfloat16
