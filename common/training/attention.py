"""Attention for training on a CPU in bfloat16, where PyTorch's fused kernel is slow. It knows no model."""
import math

import torch
from torch.nn import functional as F


def is_faster_than_fused(q):
    """
    Whether causal_attention() trains faster than the fused kernel with q (B, n_head, T, head_dim). On a CPU in bfloat16
    the fused forward and backward take 1.1 (T = 512) to 2 or 3 (T = 64) times as long. For longer T these products
    take more memory.
    """
    return q.device.type == 'cpu' and q.dtype == torch.bfloat16 and q.requires_grad and q.size(2) <= 512


def causal_attention(q, k, v, scale, dropout):
    """Causal attention of q, k, v (B, n_head, T, head_dim), written out."""
    T = q.size(2)
    with torch.autocast('cpu', enabled=False):  # or softmax would run in float32
        future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
        weights = (q * scale @ k.mT + future).softmax(dim=-1)
        return F.dropout(weights, dropout) @ v
