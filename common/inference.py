"""
A trained model made ready to generate: its weights in the dtype, the order or the 8 bits in which the device reads them
fastest, for reading the weights is what a token costs. It knows no tokenizer and no settings.
"""
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from common import generate, hardware


class PackedLinear(torch.nn.Module):
    """
    A Linear on a CPU. Its weight is in the order that oneDNN reads it in, as torch.compile keeps it when it freezes a
    model: the product of a few rows is bound by reading the weight, and F.linear reads at half the speed.
    """

    ROWS = 6  # that oneDNN's kernel works on at a time. With fewer it waits for its own sums: 6 are sooner done than 1

    def __init__(self, linear):
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), self.ROWS)

    def forward(self, x):
        rows = x.numel() // x.size(-1)
        if rows >= self.ROWS:
            return self.product(x)
        padded = F.pad(x.reshape(rows, -1), (0, 0, 0, self.ROWS - rows))
        return self.product(padded)[:rows].view(*x.shape[:-1], -1)

    def product(self, x):
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, 'none', [], '')


class Int8Linear(torch.nn.Module):
    """
    A Linear whose weight is in 8 bits, with one scale for each of its outputs; what it computes in is not. It saves
    memory, and on a CPU time; on a GPU, where each use converts the weight, it takes time.
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().float()
        self.bias = linear.bias
        self.scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).to(linear.weight.dtype)
        self.weight = (weight / self.scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)

    def forward(self, x):
        few = x.numel() <= 8 * x.size(-1)  # rows; for more than 8, or in float32, PyTorch's kernel takes longer
        if few and x.device.type == 'cpu' and x.dtype == torch.bfloat16:
            y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale).view(*x.shape[:-1], -1)
        elif x.dtype == torch.float16:  # whose largest number products of whole weights would soon pass
            y = F.linear(x, self.weight.to(x.dtype) * self.scale[:, None])
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


def replace_linears(model, kind, larger_than=0):
    """Make every Linear with more than so many weights, the output layer too, one of another kind."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear) and child.weight.numel() > larger_than:
                setattr(module, name, kind(child))


def why_not_packed(dtype):
    """
    None if oneDNN packs weights of a dtype ('float32', 'bfloat16') on this CPU; else the reason, as oneDNN gives it.
    In bfloat16 it takes AVX-512, or the newest kinds of AVX2.
    """
    try:
        PackedLinear(torch.nn.utils.skip_init(torch.nn.Linear, 16, 16, dtype=getattr(torch, dtype)))
    except (AttributeError, RuntimeError) as error:  # the functions behind it are not PyTorch's public ones
        return str(error).partition('\n')[0] or type(error).__name__
    return None


def pack(model, device, dtype):
    """Pack the Linears of a model that is in `dtype` on `device`, where that is faster; torch.compile takes none."""
    if device != 'cpu' or dtype == 'float16' or not torch.backends.mkldnn.is_available():  # in float16 F.linear is fast
        return
    reason = why_not_packed(dtype)
    if reason:
        hardware.print0(f'oneDNN packs no weights here ({reason}): generating takes longer')
    else:
        replace_linears(model, PackedLinear, larger_than=2 ** 16)  # smaller ones are bound by the call, not by memory


@torch.no_grad()
def quantize(model, ids):
    """
    Round the weights of all Linears to 8 bits. Returns the model's perplexity on ids (B, T) before and after it. The
    embeddings stay as they are.
    """
    def perplexity():
        logits = model(ids[:, :-1], ids[:, 1:])[0].float()  # a mean in 16 bits would hide what is asked for
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()

    before = perplexity()
    replace_linears(model, Int8Linear)
    return before, perplexity()


def compile_step(model, batch, size, device):
    """
    The model compiled for one token at a time, with a static KVCache of `size` tokens: on a GPU as CUDA graphs, which
    start its kernels at once. None, and a printed line, where that does not work.
    """
    @torch.no_grad()
    def trial(step):
        cache, ids = generate.KVCache(size, static=True), torch.zeros(batch, 1, dtype=torch.long, device=device)
        for run in (model, step, step, step):  # a graph is recorded the second time, and then used
            generate.feed(run, ids, cache)
        hardware.synchronize(device)

    hardware.print0('compiling a step, which can take a minute')
    torch._dynamo.config.recompile_limit = 64  # for all models of a process together; past it they run eager, unsaid
    mode = 'reduce-overhead' if device.startswith('cuda') else None
    compiled = hardware.compile_or_eager(model, nullcontext(), trial, mode)
    return None if compiled is model else compiled
