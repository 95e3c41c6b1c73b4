"""
What a run needs, and what it may reach, worked out without running it: memory by part, the largest batch, tokens a
second, days, disk, energy. All of it is derived; what was measured stands in docs/measurements.md.
"""
from dataclasses import dataclass

import torch

from common.runlog import duration
from common.settings import checkpoint_bytes

GB = 1e9
RESERVED = 2 * GB  # of a GPU's memory, for CUDA itself, the libraries' workspaces and fragmentation
GUESS = (0.25, 0.50, 'no published run of such a model at hand: a guess')
# the share of the peak that others reached in training, with the source
V100 = (0.30, 0.52, '38% at 124M (nanoGPT issue 215), 48% at 1.2B (Megatron-LM), 52% for BERT-Large (DeepSpeed)')
A100 = (0.29, 0.62, '29% at 124M (nanoGPT, 4 days on 8), 62% at 124M (llm.c, 94 minutes on 8)')


@dataclass
class Gpu:
    tflops: float    # dense, of the tensor cores, as in hardware.PEAK_TFLOPS
    memory_gb: float
    watts: float     # at full load. Memory and power: NVIDIA's data sheets
    mfu: tuple = GUESS


GPUS = {
    'v100-16gb': Gpu(125, 16, 300, V100),
    'v100-32gb': Gpu(125, 32, 300, V100),
    'v100-pcie-16gb': Gpu(112, 16, 250, V100),
    'v100-pcie-32gb': Gpu(112, 32, 250, V100),
    't4': Gpu(65, 16, 70),
    'l4': Gpu(121, 24, 72),
    'l40s': Gpu(362, 48, 350),
    'rtx3090': Gpu(71, 24, 350),
    'rtx4090': Gpu(165.2, 24, 450),
    'rtx5090': Gpu(209.5, 32, 575),
    'a100-40gb': Gpu(312, 40, 400, A100),
    'a100-80gb': Gpu(312, 80, 400, A100),
    'h100': Gpu(989, 80, 700),
    'h200': Gpu(989, 141, 700),
    'b200': Gpu(2250, 180, 1000),
}


def find_gpu(name, peak):
    """
    The Gpu of a name in the table, or with 'auto' the one that is here, whose peak FLOP/s are `peak` (None: not known).
    ValueError if there is none.
    """
    if name in GPUS:
        return GPUS[name]
    known = f'known are {", ".join(GPUS)}, and auto for the one here'
    if name != 'auto':
        raise ValueError(f'gpu={name!r} is not in the table; {known}')
    if not torch.cuda.is_available() or peak is None:
        raise ValueError(f'gpu=auto finds no GPU here whose peak is known; {known}')
    here = torch.cuda.get_device_properties(0)
    mfu = next((range_ for word, range_ in (('V100', V100), ('A100', A100)) if word in here.name), GUESS)
    return Gpu(peak / 1e12, here.total_memory / GB, 0, mfu)


def state_bytes(model, optimizer):
    """(weights, gradients, the optimizer's moments) in bytes: exact, but for a few numbers of the optimizer."""
    count = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2) if optimizer == 'muon' else 0
    return 4 * count, 4 * count, 8 * (count - matrices) + 4 * matrices  # Muon keeps one moment, AdamW two


def saved_bytes(config, half, dropout):
    """
    What autograd keeps of each token in the forward pass, in bytes: (by one block, by all around the blocks, without
    logits). `half`: products are in 16 bits, by autocast. No layer keeps a score for each pair of tokens: attention is
    fused (flash, or memory-efficient on a V100).
    """
    C, product = config.n_embd, 2 if half else 4
    # both norms keep the residual stream, in float32; the products keep what goes in: twice what a norm gives, query,
    # key and value, what attention gives, the MLP's hidden layer before and after its activation
    block = 2 * 4 * C + product * C * (1 + 3 + 1 + 1 + 4 + 4) + 4 * config.n_head
    if config.modern:
        block += product * 2 * C  # query and key after their norms
    if dropout > 0:
        block += 2 * C  # masks
    around = 4 * C + product * C + (3 * 4 * C if config.modern else 0) + (C if dropout > 0 else 0)
    return block, around


def memory(model, optimizer, half, dropout, batch_size, checkpointing=False, gpus=1, fsdp=False):
    """Bytes on one GPU by part, at the peak of an iteration with batch_size sequences in a micro-batch."""
    config, tokens = model.config, batch_size * model.config.block_size
    shards = gpus if fsdp else 1
    weights, gradients, moments = (part / shards for part in state_bytes(model, optimizer))
    parts = {'weights': weights, 'gradients': gradients, 'optimizer': moments}
    products = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    one_block = sum(p.numel() for p in model.transformer.h[0].parameters())
    if fsdp:  # this block and the next, whole
        parts['whole blocks'] = 2 * one_block * (6 if half else 4)
    if half and not (fsdp and checkpointing):  # autocast converts each weight once a pass, for autograd to keep
        parts['16-bit weights'] = 2 * products
    block, around = saved_bytes(config, half, dropout)
    if checkpointing:  # each block's input, and one block at a time
        parts['activations'] = tokens * (config.n_layer * 4 * config.n_embd + block + around)
    else:
        parts['activations'] = tokens * (config.n_layer * block + around)
    # log-softmax keeps its result; in its backward pass there are two gradients beside it. All in float32
    parts['logits'] = 12 * config.vocab_size * (min(tokens, 1024) if checkpointing else tokens)
    return parts


def largest_batch(budget, **options):
    """The largest batch_size whose memory() is within `budget` bytes; 0 if not even 1 is."""
    if sum(memory(**options, batch_size=1).values()) > budget:
        return 0
    batch = 1
    while sum(memory(**options, batch_size=2 * batch).values()) <= budget:
        batch *= 2
    step = batch
    while step := step // 2:
        if sum(memory(**options, batch_size=batch + step).values()) <= budget:
            batch += step
    return batch


def disk_bytes(model, optimizer, kept):
    """What a run's checkpoints take at most, with `kept` weights that are kept for good."""
    weights, _, moments = state_bytes(model, optimizer)
    return checkpoint_bytes(weights, moments, kept)


def speed(model, gpu, gpus):
    """(lowest, highest) tokens a second to expect of all GPUs together, in 16 bits: float32 has no tensor cores."""
    low, high, _ = gpu.mfu
    one = gpu.tflops * 1e12 / model.flops_per_token()
    return low * one * gpus, high * one * gpus


def memory_lines(gpu, batch_size, options):
    """A table of memory() by part, without and with gradient checkpointing, and what fits."""
    columns = [memory(**options, batch_size=batch_size, checkpointing=on) for on in (False, True)]
    budget = gpu.memory_gb * GB - RESERVED
    yield f'memory of a GPU in GB, at batch_size={batch_size}; the second column with gradient_checkpointing'
    for part in columns[0]:
        yield f'  {part:18} {columns[0][part] / GB:8.2f} {columns[1][part] / GB:8.2f}'
    yield (f'  {"all":18} {sum(columns[0].values()) / GB:8.2f} {sum(columns[1].values()) / GB:8.2f}   of '
           f'{budget / GB:.0f}; {RESERVED / GB:.0f} are kept free')
    largest = [largest_batch(budget, **options, checkpointing=on) for on in (False, True)]
    yield f'  {"largest batch_size":18} {largest[0] or "none":>8} {largest[1] or "none":>8}'
    config = options['model'].config
    head_dim = config.n_embd // config.n_head
    if options['half'] and head_dim % 8:
        yield f'  heads of {head_dim} channels, not a multiple of 8: no fused attention, more memory than this'


def time_lines(gpu, tokens, options, kept):
    """Speed, days, energy and disk for a run over so many tokens, of which `kept` weights are kept for good."""
    model, gpus = options['model'], options['gpus']
    if not options['half']:
        yield 'speed   not known in float32, which has other units than 16 bits'
        return
    low, high = speed(model, gpu, gpus)
    days = [tokens / one / 86400 for one in (high, low)]
    yield f'speed   {low:,.0f} to {high:,.0f} tokens/s: {gpu.mfu[0]:.0%} to {gpu.mfu[1]:.0%} of the peak'
    yield f'        others: {gpu.mfu[2]}'
    yield '        with gradient_checkpointing about a quarter less: a second forward pass'
    span = [f'{one:.3g} days' if one >= 1 else duration(86400 * one) for one in days]
    size = f'{tokens / 1e9:.3g} billion' if tokens >= 1e9 else f'{tokens / 1e6:.3g} million'
    yield f'time    {span[0]} to {span[1]} for {size} tokens'
    if gpu.watts:
        kwh = [24 * one * gpus * gpu.watts / 1000 for one in days]
        digits = 0 if kwh[0] >= 10 else 3
        yield f'energy  {kwh[0]:,.{digits}f} to {kwh[1]:,.{digits}f} kWh of the GPUs, at {gpu.watts} W each'
    yield (f'disk    {disk_bytes(model, options["optimizer"], kept) / GB:.1f} GB: the best weights, '
           + f'{kept} that are kept, ' * (kept > 0) + 'two states, and a third while it is written')
