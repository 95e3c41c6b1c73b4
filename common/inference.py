"""
Make a trained model generate fast. A token costs about one read of all weights, so these are packed or quantized for
the device; a step of one token can be compiled. It knows no tokenizer and no settings.
"""
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from common import console, generate
from common.compile import compile_or_eager
from common.device import synchronize
from common.distributed import print0


class PackedLinear(torch.nn.Module):
    """
    A Linear for a CPU, with its weight in oneDNN's own layout, as torch.compile has it in a frozen model. A matmul of a
    few rows is bound by reading the weight, and F.linear reads it at half the speed.
    """

    ROWS = 6  # oneDNN's kernel takes this many at a time; fewer make it wait for its own sums, and 6 are faster than 1

    def __init__(self, linear):
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), self.ROWS)

    def forward(self, x):
        rows = x.flatten(0, -2)
        if len(rows) < self.ROWS:
            rows = F.pad(rows, (0, 0, 0, self.ROWS - len(rows)))
        y = torch.ops.mkldnn._linear_pointwise.default(rows, self.weight, self.bias, 'none', [], '')
        return y[:x.numel() // x.size(-1)].view(*x.shape[:-1], -1)


class Int8Linear(torch.nn.Module):
    """
    A Linear whose weight is in 8 bits, with one scale per output; it computes in the dtype of its input. It saves
    memory, and time on a CPU; on a GPU it costs time, because each use converts the weight.
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().float()
        self.bias = linear.bias
        self.scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).to(linear.weight.dtype)
        self.weight = (weight / self.scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)

    def forward(self, x):
        few = x.numel() <= 8 * x.size(-1)  # rows; with more, or in float32, PyTorch's int8 kernel is slower
        if few and x.device.type == 'cpu' and x.dtype == torch.bfloat16:
            y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale).view(*x.shape[:-1], -1)
        elif x.dtype == torch.float16:  # scale the weight first: unscaled sums overflow
            y = F.linear(x, self.weight.to(x.dtype) * self.scale[:, None])
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


def replace_linears(model, kind, larger_than=0):
    """Replace every Linear of more than `larger_than` weights, the output layer too, by kind(linear)."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear) and child.weight.numel() > larger_than:
                setattr(module, name, kind(child))


def why_not_packed(dtype):
    """None if oneDNN packs weights of a dtype, a name, on this CPU, else the reason that it gives."""
    try:  # bfloat16 needs AVX-512 or the newest kinds of AVX2
        PackedLinear(torch.nn.utils.skip_init(torch.nn.Linear, 16, 16, dtype=getattr(torch, dtype)))
    except (AttributeError, RuntimeError) as error:  # PackedLinear uses private functions of PyTorch
        return str(error).partition('\n')[0] or type(error).__name__
    return None


def pack(model, device, dtype):
    """Pack the Linears of a model in `dtype` on `device` where that is faster. torch.compile cannot take these."""
    if device != 'cpu' or dtype == 'float16' or not torch.backends.mkldnn.is_available():  # F.linear is fast in float16
        return
    reason = why_not_packed(dtype)
    if reason:
        print0(f'oneDNN packs no weights here ({reason}): generating takes longer')
    else:
        replace_linears(model, PackedLinear, larger_than=2 ** 16)  # in smaller ones the call costs more than the memory


def convert(model, device, dtype):
    """Move a model to a device, in `dtype`, a name. ValueError if its weights are too large for that dtype."""
    model.to(device, getattr(torch, dtype))
    # the range of bfloat16 is that of float32
    if dtype == 'float16' and not torch.stack([torch.isfinite(p).all() for p in model.parameters()]).all():
        raise ValueError('the weights of this model are too large for float16; try --dtype=float32')


@torch.no_grad()
def quantize(model, ids):
    """
    Round the weights of all Linears to 8 bits. Returns the perplexity on ids (B, T) before and after. ValueError if the
    model computes numbers that are not finite.
    """
    def perplexity():
        logits = model(ids[:, :-1], ids[:, 1:])[0]
        generate.check_finite(logits, logits.dtype)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())  # in 16 bits it is not exact enough
        return console.perplexity(loss.item())

    before = perplexity()
    replace_linears(model, Int8Linear)
    return before, perplexity()


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
