"""
Linears for generating on a CPU. A token takes a product with every matrix, and that as long as it takes to read them:
which layout and which kernel are the fastest differs from one CPU to the next, so that it is measured, once on each
machine. It knows no model, only its Linears.
"""
import itertools
import json
import os
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress

import torch
from torch.nn import functional as F

from common import cpu, files, kernels
from common.device import native_bf16

FEW = 16             # rows that a kernel for few may be given; more are a matmul, bound by arithmetic
SMALL = 2**13        # weights of a matrix up to which nothing is gained: those of a toy
ROWS = 1, 4          # one text and several: what the candidates are timed with
SAMPLE = 2**22       # weights of a shape that are timed
WHOLE = 1.25         # where kernels.c takes no longer than this it is taken: it saves what is between the matrices
ROUNDS = 2
EVICTED = 2**24      # numbers in float32 that are read in between: more than fit into most caches
WRONG = 0.1          # relative error of a product; 8 bits have 0.01


def to_int8(weight):
    """(int8, scale (N)): a matrix (N, K) rounded to 8 bits, with one scale for each output."""
    weight = weight.detach().float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def rounded(weight, dtype):
    """A matrix in float32, with the numbers that `dtype` has for it."""
    if dtype == torch.int8:
        eight, scale = to_int8(weight)
        return eight * scale[:, None]
    return weight.detach().to(dtype).float()


class Candidate(torch.nn.Module):
    """
    A Linear that takes and gives float32 and multiplies in some precision, from x (..., K) to (..., N): by few() for up
    to `most` rows, by many() for more. What it cannot do it raises when it is made.
    """

    most = FEW

    def __init__(self, weight, bias, dtype):
        super().__init__()
        self.out_features, self.bias = len(weight), None if bias is None else bias.detach().float()
        self.weight, self.scale = to_int8(weight) if dtype == torch.int8 else (weight.detach().to(dtype), None)

    def forward(self, x):
        return self.few(x) if x.numel() <= self.most * x.size(-1) else self.many(x)

    def few(self, x):
        return self.many(x)

    def many(self, x):
        # native 16 bits are faster than float32, which is as exact as any
        dtype = torch.bfloat16 if self.weight.dtype == torch.bfloat16 and native_bf16('cpu') else torch.float32
        return self.scaled(F.linear(x.to(dtype), self.weight.to(dtype)).float())

    def scaled(self, y):
        """The outputs of the weights as they are stored, with their scales and the bias."""
        y = y if self.scale is None else y * self.scale
        return y if self.bias is None else y + self.bias


class Plain(Candidate):
    """F.linear in the precision of the weights."""

    def few(self, x):
        return self.scaled(F.linear(x.to(self.weight.dtype), self.weight).float())


class Kernel(Candidate):
    """Our own, kernels.c."""

    def __init__(self, weight, bias, dtype):
        super().__init__(weight, bias, dtype)
        self.matrix = kernels.matrix(self.weight, self.scale, self.bias)
        if dtype != torch.float32:  # many() has to convert the weight first
            self.most = 2 * FEW

    def few(self, x):
        return kernels.linear(self.matrix, x)


class Packed(Candidate):
    """oneDNN with the weight in a layout of its own, as torch.compile has it in a frozen model."""

    least_rows = 1

    def __init__(self, weight, bias, dtype):
        super().__init__(weight, bias, dtype)
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, self.least_rows)

    def many(self, x):
        rows = x.flatten(0, -2)
        missing = self.least_rows - len(rows)
        padded = F.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows
        y = torch.ops.mkldnn._linear_pointwise.default(padded.to(self.dtype), self.weight, None, 'none', [], '')
        return self.scaled(y[:len(rows)].float()).view(*x.shape[:-1], -1)


class PackedSix(Packed):
    """The same for 6 rows: some of oneDNN's kernels take as many at a time, and fewer make them wait for their sums."""

    least_rows = 6


class Fbgemm(Candidate):
    """FBGEMM with weights in float16, computing in float32."""

    def __init__(self, weight, bias, dtype):
        super().__init__(weight, bias, dtype)
        self.packed = torch.ops.quantized.linear_prepack_fp16(self.weight.float(), self.bias)

    def few(self, x):
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class Int8Pack(Candidate):
    """PyTorch's kernel for 8-bit weights, which is fast in bfloat16."""

    def __init__(self, weight, bias, dtype):
        super().__init__(weight, bias, dtype)
        self.ones = torch.ones(self.out_features, dtype=torch.bfloat16)  # the scales are in float32

    def few(self, x):
        y = torch._weight_int8pack_mm(x.flatten(0, -2).bfloat16(), self.weight, self.ones)
        return self.scaled(y.float()).view(*x.shape[:-1], -1)


class Dynamic(Candidate):
    """
    FBGEMM with the activations in 8 bits, too: each row has a scale and a zero point of its own, so that no text
    depends on another. Without VNNI only 7 bits of them are used, or the sums of two products overflow.
    """

    def __init__(self, weight, bias, dtype):
        super().__init__(weight, bias, dtype)
        self.seven = not torch.cpu._is_vnni_supported()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # PyTorch 2.14 deprecates making such tensors
            zeros = torch.zeros(self.out_features, dtype=torch.long)
            quantized = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(quantized, self.bias)

    def few(self, x):
        rows = x.flatten(0, -2).split(1)
        y = torch.cat([torch.ops.quantized.linear_dynamic(row, self.packed, self.seven) for row in rows])
        return y.view(*x.shape[:-1], -1)

    def many(self, x):
        """The same rounding, computed in float32."""
        low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
        step = ((high - low) / (127 if self.seven else 255)).clamp(min=1e-12)
        return super().many((x / step).round() * step)


CANDIDATES = {  # by precision; the first is what PyTorch does by itself
    'float32': {'F.linear': Plain, 'kernels.c': Kernel, 'oneDNN': Packed, 'oneDNN, 6 rows': PackedSix},
    'bfloat16': {'F.linear': Plain, 'kernels.c': Kernel, 'oneDNN': Packed, 'oneDNN, 6 rows': PackedSix},
    'float16': {'F.linear': Plain, 'kernels.c': Kernel, 'FBGEMM': Fbgemm},
    'int8': {'_weight_int8pack_mm': Int8Pack, 'kernels.c': Kernel, 'FBGEMM': Dynamic}}


def by_shape(model):
    """{(N, K): how many Linears have it} of those that are large enough."""
    return Counter(tuple(module.weight.shape) for module in model.modules()
                   if isinstance(module, torch.nn.Linear) and module.weight.numel() > SMALL)


def make(kind, weight, dtype):
    """The candidate for a random weight, or None where this machine or this PyTorch has none that multiplies by it."""
    with suppress(kernels.Missing, ValueError, RuntimeError, AttributeError):  # several functions are private
        made, x = kind(weight, None, dtype), torch.randn(1, weight.size(1))
        expected = F.linear(x, weight)
        if (made(x) - expected).norm() <= WRONG * expected.norm():
            return made
    return None


def measure(shapes, precision):
    """
    {(N, K): {candidate: seconds of a product with each of ROWS}} for {(N, K): how many there are}. They take turns;
    before each something else is read, so that matrices are in no cache, as in a model. The first round warms up.
    """
    made, seconds = {}, {}
    for (N, K), count in shapes.items():
        # of a large matrix the first outputs; random, as it must not depend on a model's weights what is fast
        weight = 0.02 * torch.randn(min(N, max(4, SAMPLE // K // 4 * 4)), K)
        for name, kind in CANDIDATES[precision].items():
            made[(N, K), name] = [make(kind, weight.clone(), getattr(torch, precision))
                                  for _ in range(min(count, max(1, SAMPLE // (N * K))))]
    inputs = {(rows, K): torch.randn(rows, K) for rows in ROWS for _, K in shapes}
    rest = torch.randn(EVICTED)
    for _, rows, name in itertools.product(range(1 + ROUNDS), ROWS, CANDIDATES[precision]):
        rest.sum()
        for N, K in shapes:
            group = made[(N, K), name]
            if None not in group:
                begin = time.perf_counter()
                for candidate in group:
                    candidate(inputs[rows, K])
                took = (time.perf_counter() - begin) / sum(one.out_features for one in group) * N
                seconds.setdefault((N, K), {}).setdefault(name, {}).setdefault(rows, []).append(took)
    return {shape: {name: [min(times[rows][1:]) for rows in ROWS] for name, times in names.items()}
            for shape, names in seconds.items()}


def machine():
    """What the figures depend on."""
    own = kernels.try_to_load()[1] or kernels.fingerprint()
    return f'{cpu.describe()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, kernels.c: {own}'


def read(path):
    """The JSON object in a file, {} if there is none that can be read."""
    with suppress(OSError, ValueError, TypeError), open(path, encoding='utf-8') as f:
        known = json.load(f)
        return known if isinstance(known, dict) else {}
    return {}


def keep(path, here, figures):
    """Add what was measured on this machine to a file, or say why it cannot be kept."""
    try:
        files.make_private(os.path.dirname(path))
        lock = files.lock(f'{path}.lock', wait=True)
        try:
            known = read(path)
            others = known.get(here) if isinstance(known.get(here), dict) else {}
            with files.write_whole(path) as f:
                json.dump({**known, here: {**others, **figures}}, f, indent=1)
        finally:
            lock.release()
    except (OSError, TypeError) as error:  # TypeError: the user has no place for it
        reason = error.strerror or error if isinstance(error, OSError) else 'no home folder'
        print(f'what was measured for generating cannot be kept, and is measured each time: {reason}', file=sys.stderr)


def usable(names, kinds):
    """Whether {candidate: seconds}, as read from a file, has a figure for each of ROWS and knows the candidates."""
    return (isinstance(names, dict) and bool(names) and set(names) <= set(kinds)
            and all(isinstance(times, list) and len(times) == len(ROWS)
                    and all(isinstance(value, (int, float)) for value in times) for times in names.values()))


def measured(shapes, precision):
    """measure() of the shapes that were not measured on this machine yet; the others from the user's cache folder."""
    folder, here = files.user_folder('XDG_CACHE_HOME', '.cache'), machine()
    path, kinds = folder and os.path.join(folder, 'linears.json'), CANDIDATES[precision]
    figures = read(path).get(here)
    figures = figures if isinstance(figures, dict) else {}
    keys = {(N, K): f'{N} x {K} in {precision} by {", ".join(kinds)}' for N, K in shapes}
    new = {shape: count for shape, count in shapes.items() if not usable(figures.get(keys[shape]), kinds)}
    if new:
        found = {keys[shape]: names for shape, names in measure(new, precision).items()}
        figures.update(found)
        keep(path, here, found)
    return {shape: figures[key] for shape, key in keys.items()}


def total(times, names):
    """Seconds for a product of each shape with each of ROWS, by the candidates `names`."""
    return sum(sum(times[shape][name]) for shape, name in names.items())


class Choice:
    """
    The candidates for a model in a precision: `names` {(N, K): candidate}, and what a token takes then. They are the
    fastest, or kernels.c where that is hardly slower.
    """

    def __init__(self, model, precision, whole=True):
        """whole: kernels.c can compute all blocks of the model without Python."""
        self.precision, shapes = precision, by_shape(model)
        times = measured(shapes, precision)
        self.names = {shape: min(names, key=lambda name: sum(names[name])) for shape, names in times.items()}
        own = {shape: 'kernels.c' for shape in times if 'kernels.c' in times[shape]}
        if whole and total(times, own) <= WHOLE * total(times, {shape: self.names[shape] for shape in own}):
            self.names.update(own)
        self.weights = sum(N * K * count for (N, K), count in shapes.items())
        # seconds for one row with all of these matrices
        self.seconds = sum(shapes[shape] * times[shape][name][0] for shape, name in self.names.items())
        everywhere = [name for name in CANDIDATES[precision] if all(name in names for names in times.values())]
        self.others = {name: sum(shapes[shape] * names[name][0] for shape, names in times.items())
                       for name in everywhere if {name} != set(self.names.values())}

    def apply(self, model):
        """Replace the Linears, the output layer too. Smaller ones keep their kind, with rounded weights."""
        dtype = getattr(torch, self.precision)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if not isinstance(child, torch.nn.Linear):
                    continue
                shape = tuple(child.weight.shape)
                if shape in self.names:
                    kind = CANDIDATES[self.precision][self.names[shape]]
                    setattr(module, name, kind(child.weight, child.bias, dtype))
                else:  # a new parameter: the embedding may share the old one
                    child.weight = torch.nn.Parameter(rounded(child.weight, dtype), requires_grad=False)

    def __str__(self):
        used = ' and '.join(dict.fromkeys(self.names.values()))
        others = ', '.join(f'{name} {1000 * seconds:.1f}' for name, seconds in self.others.items())
        is_slower = 'kernels.c' in used and min(self.others.values(), default=self.seconds) < self.seconds
        return (f'{self.precision} by {used}: measured here, the matrices of a token take {1000 * self.seconds:.1f} ms'
                + f' ({others})' * bool(others)
                + '; not the fastest, but kernels.c also saves time between the matrices' * is_slower)
