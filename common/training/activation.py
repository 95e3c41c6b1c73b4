"""The activation of a modern model. It knows no model."""
import torch
from torch.nn import functional as F


class ReluSquared(torch.autograd.Function):
    """relu(x)^2, whose derivative is 2 relu(x): three passes over memory instead of the five that autograd makes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        x = F.relu(x)
        return x * x  # autocast on a GPU would compute square() in float32

    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        return (F.relu(x) * grad).mul_(2)


def relu_squared(x):
    """ReLU^2 of x, any shape. So et al. 2021, "Primer", https://arxiv.org/abs/2109.08668"""
    return ReluSquared.apply(x)
