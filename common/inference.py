"""
Make a trained model generate fast. A token takes about as long as reading all weights: they are stored in 16 or 8 bits
and, on a CPU, multiplied by the fastest kernel that there is; or a step of one token is compiled. It knows no tokenizer
and no settings.
"""
from contextlib import nullcontext, suppress

import torch
from torch.nn import functional as F

from common import console, generate, kernels, linears
from common.compile import compile_or_eager
from common.device import synchronize
from common.distributed import print0


WORTH_ROUNDING = 0.9  # of float32's time: 'auto' rounds the weights to float16 below it


class Embedding(torch.nn.Module):
    """An nn.Embedding stored in 16 bits that gives float32."""

    def __init__(self, embedding, dtype):
        super().__init__()
        self.weight = embedding.weight
        self.weight.data = self.weight.data.to(dtype)  # in place: the output layer may share it

    def forward(self, idx):
        return F.embedding(idx, self.weight).float()


class Blocks(torch.nn.Module):
    """
    All blocks of a model, which kernels.c computes for one token at a time. AttributeError unless all their Linears are
    of linears.Kernel; ValueError if the kernel cannot.
    """

    def __init__(self, blocks):
        super().__init__()
        self.blocks, attn, mlp = blocks, blocks[0].attn, blocks[0].mlp
        parts = [([linear.matrix for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)],
                  [block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias]) for block in blocks]
        activation = 'relu_squared' if mlp.modern else mlp.gelu.approximate
        self.steps = kernels.Steps(parts, attn.n_head, activation, attn.scale)

    def forward(self, x, rope=None, cache=None, recompute=False):
        if cache is not None and x.size(1) == 1 and len(x) <= linears.FEW and cache.keys:
            return self.steps(x, rope, cache.keys, cache.values, cache.length % cache.size, cache.used, cache.mask)
        for block in self.blocks:
            x = block(x, rope, cache)
        return x


class Int8Linear(torch.nn.Module):
    """
    A Linear whose weight is in 8 bits, with one scale per output; it computes in the dtype of its input. For GPUs and
    compiled code. On a GPU it saves memory but no time, because each use converts the weight.
    """

    def __init__(self, linear):
        super().__init__()
        self.weight, scale = linears.to_int8(linear.weight)
        self.bias, self.scale = linear.bias, scale.to(linear.weight.dtype)

    def forward(self, x):
        if x.dtype == torch.float16:  # scale the weight first: unscaled sums overflow
            y = F.linear(x, self.weight.to(x.dtype) * self.scale[:, None])
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


def fits_float16(model):
    """Whether float16, whose largest number is 65,504, can hold the weights. The range of bfloat16 is float32's."""
    return all(torch.isfinite(p.detach().half()).all() for p in model.parameters())


def convert(model, device, dtype):
    """Move a model to a device, in `dtype`, a name. ValueError if its weights are too large for that dtype."""
    if dtype == 'float16' and not fits_float16(model):
        raise ValueError('the weights of this model are too large for float16; try --dtype=float32')
    model.to(device, getattr(torch, dtype))


def specialize(model, dtype, int8=False):
    """
    Give a model in float32 on a CPU the fastest kernels that it has, and say which. Its weights are stored in `dtype`,
    a name, or with `int8` the matrices in 8 bits; it computes in float32. 'auto' is float16 where that is faster and can
    hold the weights, else float32. Where weights are in 16 bits, the keys and values in its caches are in float16.
    ValueError if float16 cannot hold the weights. torch.compile cannot take such a model.
    """
    fits = fits_float16(model)
    if dtype == 'float16' and not fits:
        raise ValueError('the weights of this model are too large for float16; try --dtype=float32')
    names = ['float32', 'float16'][:1 + fits] if dtype == 'auto' else [dtype]
    choice, *smaller = [linears.Choice(model, name) for name in (['int8'] if int8 else names)]
    if smaller and smaller[0].seconds < WORTH_ROUNDING * choice.seconds:
        choice, = smaller
    stored = getattr(torch, names[-1] if int8 else choice.precision)
    if stored != torch.float32:
        for name, module in list(model.transformer.named_children()):
            if isinstance(module, torch.nn.Embedding):
                setattr(model.transformer, name, Embedding(module, stored))
    choice.apply(model)
    with suppress(AttributeError, ValueError):  # another candidate is faster, or it has no kernel
        model.transformer.h = torch.nn.ModuleList([Blocks(model.transformer.h)])
        model.cache_dtype = None if stored == torch.float32 else torch.float16
    if choice.names:
        print0(choice)


def quantize(model):
    """Round the weights of all Linears to 8 bits."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Int8Linear(child))


@torch.no_grad()
def perplexity(model, ids):
    """The perplexity of ids (B, T) in a model. ValueError if it computes numbers that are not finite."""
    logits = model(ids[:, :-1], ids[:, 1:])[0]
    generate.check_finite(logits, logits.dtype)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())  # in 16 bits it is not exact enough
    return console.perplexity(loss.item())


def compile_step(model, batch, size, device):
    """
    The model compiled for steps of one token, with a static KVCache of `size` tokens; on a GPU as CUDA graphs, which
    launch all kernels at once. Where that fails, None and a printed line.
    """
    @torch.no_grad()
    def trial(step):
        cache, ids = generate.KVCache(size, static=True), torch.zeros(batch, 1, dtype=torch.long, device=device)
        for run in (model, step, step, step):  # step compiles, then records a CUDA graph, then replays it
            generate.feed(run, ids, cache)
        synchronize(device)

    print0('compiling a step, which can take a minute')
    torch._dynamo.config.recompile_limit = 64  # shared by all models of the process; past it they silently run eager
    compiled = compile_or_eager(model, nullcontext(), trial, 'reduce-overhead' if device.startswith('cuda') else None)
    return None if compiled is model else compiled
