"""The loss of a language model's output layer without the logits of the whole batch in memory. It knows no model."""
import torch
from torch.nn import functional as F

from common.device import autocast_dtype


def bounded(logits, softcap):
    """softcap * tanh(logits / softcap), in place where there is no gradient to compute; softcap=0: the logits."""
    if softcap == 0.0:
        return logits
    if torch.is_grad_enabled():
        return softcap * torch.tanh(logits / softcap)
    return logits.div_(softcap).tanh_().mul_(softcap)


class LinearCrossEntropy(torch.autograd.Function):
    """
    The summed cross entropy of the logits x @ weight.T, in nats, without those whose target is -1: x (N, n_embd),
    weight (vocab_size, n_embd), targets (N,). A softcap above 0 bounds the logits, as in GPT.head(). The forward pass
    computes the gradients of a chunk, too, while its logits are there: the backward pass has only to scale them,
    nothing is computed twice, and no logits are kept. As in Hsu et al. 2024, "Liger Kernel",
    https://arxiv.org/abs/2410.10989
    """

    @staticmethod
    def forward(ctx, x, weight, targets, logits_at_once, softcap):
        dtype = autocast_dtype(x)
        x16, weight16 = x.to(dtype), weight.to(dtype)  # once, not once a chunk
        loss = x.new_zeros((), dtype=torch.float32)
        x_grads, weight_grad = [], torch.zeros_like(weight, dtype=torch.float32)
        chunks = -(-x.size(0) * weight.size(0) // logits_at_once)
        for rows, ids in zip(x16.chunk(chunks), targets.chunk(chunks)):
            logits = rows @ weight16.T
            if softcap > 0.0:
                logits = logits.float().div_(softcap).tanh_().mul_(softcap)
            grad = F.log_softmax(logits, dim=-1, dtype=torch.float32)  # log-probabilities, for now
            loss = loss + F.nll_loss(grad, ids, ignore_index=-1, reduction='sum')
            grad.exp_().scatter_add_(1, ids.clamp(min=0)[:, None], grad.new_full((len(ids), 1), -1.0))
            grad.mul_((ids >= 0)[:, None])  # of the logits: probability - (1 at the target)
            if softcap > 0.0:  # of the plain logits: times the slope of tanh, 1 - tanh^2
                grad.addcmul_(grad, logits.div_(softcap).square_(), value=-1)
            grad = grad.to(dtype)
            x_grads.append(grad @ weight16)
            weight_grad.add_(grad.T @ (rows / 16), alpha=16)  # or the sum over many rows might overflow in float16
        ctx.save_for_backward(torch.cat(x_grads).to(x.dtype), weight_grad)
        return loss

    @staticmethod
    def backward(ctx, loss_grad):
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError('the loss in chunks has first derivatives only; raise model.LOGITS_AT_ONCE')
        x_grad, weight_grad = ctx.saved_tensors
        return x_grad * loss_grad, weight_grad * loss_grad, None, None, None


def linear_cross_entropy(x, weight, targets, logits_at_once, softcap=0.0):
    """The loss of LinearCrossEntropy, a float32 scalar, with at most so many logits in memory at once."""
    return LinearCrossEntropy.apply(x, weight, targets, logits_at_once, softcap)
