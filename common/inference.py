"""
Make a trained model generate fast. A token takes about as long as reading all weights: they are stored in 16 or 8 bits
and, on a CPU, multiplied by the kernel that linears.py takes for it; or a step of one token is compiled. It knows no
tokenizer and no settings.
"""
import sys
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from common import console, generate, kernels, linears
from common.compile import compile_or_eager
from common.device import synchronize
from common.distributed import print0


LARGE = 2**24  # weights, more than caches hold: the noise of measuring must not decide what a small model writes


class Embedding(torch.nn.Module):
    """An nn.Embedding stored in 16 bits that gives float32."""

    def __init__(self, embedding, dtype):
        super().__init__()
        self.weight = embedding.weight
        self.weight.data = self.weight.data.to(dtype)  # in place: the output layer may share it

    def forward(self, idx):
        return F.embedding(idx, self.weight).float()


def linears_of(block):
    return block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj


class Blocks(torch.nn.Module):
    """All blocks of a model, whose Linears are of linears.Kernel: kernels.c computes them for one token at a time."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks, attn, mlp = blocks, blocks[0].attn, blocks[0].mlp
        parts = [([linear.matrix for linear in linears_of(block)],
                  [block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias]) for block in blocks]
        activation = 'relu_squared' if mlp.modern else mlp.gelu.approximate
        self.steps = kernels.Steps(parts, attn.n_head, activation, attn.scale)

    def forward(self, x, rope=None, cache=None, recompute=False):
        if cache is not None and x.size(1) == 1 and cache.keys:
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
        few = x.numel() <= 8 * x.size(-1)  # rows; with more PyTorch's int8 kernel is slower
        if few and x.device.type == 'cpu' and x.dtype == torch.bfloat16:
            y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale).view(*x.shape[:-1], -1)
        elif x.dtype == torch.float16:  # scale the weight first: unscaled sums overflow
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
    Give a model in float32 on a CPU the kernels of a linears.Choice, and say which. Its weights are stored in `dtype`,
    a name, or with `int8` the matrices in 8 bits; it computes in float32. 'auto' is float16 for a large model, where
    that is faster and can hold the weights, else float32. If kernels.c computes its blocks, and weights are in float16,
    the keys and values in its caches are, too. ValueError if float16 cannot hold the weights. torch.compile, deepcopy
    and pickle cannot take such a model.
    """
    fits = dtype == 'float32' or fits_float16(model)
    if dtype == 'float16' and not fits:
        raise ValueError('the weights of this model are too large for float16; try --dtype=float32')
    whole = model.config.n_embd // model.config.n_head % kernels.LANES == 0  # its attention has a kernel
    names = ['int8'] if int8 else ['float32', 'float16'][:1 + fits] if dtype == 'auto' else [dtype]
    choices = [linears.Choice(model, name, whole) for name in names]
    choice = choices[-1] if choices[-1].weights >= LARGE and choices[-1].seconds < choices[0].seconds else choices[0]
    stored = ('float16' if fits else 'float32') if int8 and dtype == 'auto' else dtype if int8 else choice.precision
    if int8:
        choice.apply(model)  # before the embedding, whose weights the output layer may share, is in 16 bits
    if stored != 'float32' and (choice.names or dtype != 'auto'):
        for name, module in list(model.transformer.named_children()):
            if isinstance(module, torch.nn.Embedding):
                setattr(model.transformer, name, Embedding(module, getattr(torch, stored)))
    if not int8:
        choice.apply(model)
    kinds = {type(linear) for block in model.transformer.h for linear in linears_of(block)}
    if whole and kinds == {linears.Kernel}:
        model.transformer.h = torch.nn.ModuleList([Blocks(model.transformer.h)])
        model.cache_dtype = torch.float16 if stored == 'float16' else None
    if choice.names:
        others = [f'; in {other.precision} {1000 * other.seconds:.1f} ms' for other in choices if other is not choice]
        print(f'{choice}{"".join(others)}', file=sys.stderr)


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
