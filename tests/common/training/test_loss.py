"""The loss of the output layer in chunks: the value, the gradients and the memory, against PyTorch's cross entropy."""
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.training.loss import linear_cross_entropy
from model import GPT, GPTConfig

BF16 = torch.autocast('cpu', torch.bfloat16)


def given(tokens=50, vocab_size=96, width=32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab_size, width, generator=generator).mul_(0.3).requires_grad_()
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    targets[::7] = -1
    return x, weight, targets


def plain(x, weight, targets, softcap=0.0):
    logits = F.linear(x, weight)
    if softcap > 0.0:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction='sum')


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize('softcap', [0.0, 1.0, 15.0])
@pytest.mark.parametrize('tokens_at_once', [1, 7, 49, 50, 1000])
def test_loss_and_gradients_are_those_of_cross_entropy(tokens_at_once, softcap):
    x, weight, targets = given()
    ours = linear_cross_entropy(x, weight, targets, tokens_at_once * len(weight), softcap)
    theirs = plain(x, weight, targets, softcap)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours / 3, (x, weight)), torch.autograd.grad(theirs / 3, (x, weight))):
        assert a.dtype == b.dtype and relative(a, b) < 1e-5


@pytest.mark.parametrize('softcap', [0.0, 2.0])
@pytest.mark.parametrize('residual', [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_as_near_to_float32_as_autocasts_own(residual, softcap):
    x, weight, targets = given(tokens=400)
    exact = torch.autograd.grad(plain(x, weight, targets, softcap), (x, weight))
    errors = []
    for loss in (lambda *of: linear_cross_entropy(*of, 100 * len(weight), softcap), lambda *of: plain(*of, softcap)):
        with BF16:
            value = loss(x.to(residual), weight, targets)
        assert value.dtype == torch.float32 and abs(value - plain(x, weight, targets, softcap)) / value < 1e-3
        gradients = torch.autograd.grad(value, (x, weight))
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        errors.append([relative(a, b) for a, b in zip(gradients, exact)])
    assert all(ours < 1.1 * theirs for ours, theirs in zip(*errors))


@pytest.mark.parametrize('softcap', [0.0, 15.0])
def test_where_no_target_counts_loss_and_gradients_are_0(softcap):
    x, weight, targets = given()
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, -1), 1000, softcap)
    assert loss == 0 and not any(gradient.any() for gradient in torch.autograd.grad(loss, (x, weight)))


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that a tensor of some dtype has which is made within."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype, self.numbers = dtype, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == self.dtype:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize('recompute, softcap', [(False, 0.0), (True, 0.0), (False, 15.0)])
def test_training_never_has_all_logits_of_a_large_batch(monkeypatch, recompute, softcap):
    """Neither in float32 nor in 16 bits; and what is kept for the backward pass is no logits at all."""
    at_once, (B, T, V) = 6000, (8, 16, 128)
    monkeypatch.setattr('model.LOGITS_AT_ONCE', at_once)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=T, vocab_size=V, softcap=softcap)).train()
    model.gradient_checkpointing = recompute
    idx, kept = torch.randint(V, (B, T)), []
    with LargestTensor(torch.float32) as floats, LargestTensor(torch.bfloat16) as halves, BF16:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            logits, loss = model(idx, idx)
        loss.backward()
    assert logits is None and B * T * V == 16384
    activations = B * T * 4 * 8  # the hidden layer of the MLP
    assert max(kept) <= activations < 0.9 * at_once < halves.numbers <= floats.numbers <= at_once


def test_in_float16_the_gradient_of_the_weights_has_room_for_many_rows():
    """Which agree: 8,000 times the same target and the same 13, whose sum is above 65,504."""
    x, weight = torch.full((8000, 4), 13.0, dtype=torch.float16), torch.zeros(64, 4, dtype=torch.float16)
    loss = linear_cross_entropy(x, weight.requires_grad_(), torch.zeros(8000, dtype=torch.long), 64 * 8000)
    gradient, = torch.autograd.grad(loss / 8000, weight)
    torch.testing.assert_close(gradient[0], torch.full((4,), -13 * 63 / 64, dtype=torch.float16), rtol=2e-3, atol=0)


def test_second_derivatives_are_refused_and_not_wrong():
    x, weight, targets = given()
    with pytest.raises(RuntimeError, match='first derivatives only'):
        torch.autograd.grad(linear_cross_entropy(x, weight, targets, 1000), x, create_graph=True)


def test_a_small_batch_gives_its_logits_too():
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=16)).train()
    logits, loss = model(*[torch.arange(16).view(2, 8)] * 2)
    assert logits.shape == (2, 8, 16) and not logits.requires_grad and loss.requires_grad
