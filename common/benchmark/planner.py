"""
What a run needs and how fast it may be, derived without running it: memory by part, the largest batch, tokens/s, days,
energy, disk. Measurements are in docs/measurements.md.
"""
import bisect
from dataclasses import replace

import torch

from common import device
from common.console import duration
from common.settings import disk_bytes, state_bytes

GB = 1e9
RESERVED = 2 * GB  # of a GPU's memory, for CUDA itself, library workspaces and fragmentation
# the share of the peak (MFU) that others reached in training: lowest, highest, source
MFU = {
    'V100': (0.30, 0.52, '38% at 124M (nanoGPT issue 215), 48% at 1.2B (Megatron-LM), 52% for BERT-Large (DeepSpeed)'),
    'A100': (0.29, 0.62, '29% at 124M (nanoGPT, 4 days on 8), 62% at 124M (llm.c, 94 minutes on 8)'),
}
GUESS = (0.25, 0.50, 'none published on such a GPU; this is a guess')


def gpu_by_name(name):
    """The row of device.GPUS called `name`; 'auto' is the GPU here, with its real memory. ValueError without one."""
    if name in device.GPUS:
        return device.GPUS[name]
    known = f'known: {", ".join(device.GPUS)}, and auto for the one here'
    if name != 'auto':
        raise ValueError(f'gpu={name!r} is not in the table; {known}')
    here = device.find_gpu() if torch.cuda.is_available() else None
    if here is None:
        raise ValueError(f'gpu=auto finds no GPU here whose peak is known; {known}')
    # its name does not tell its power
    return replace(here, memory_gb=torch.cuda.get_device_properties(0).total_memory / GB, watts=0)


def find_mfu(gpu):
    """(lowest, highest, source) of the MFU to expect on a row of device.GPUS."""
    return next((mfu for name, mfu in MFU.items() if name in gpu.pattern), GUESS)


def saved_bytes(config, half, dropout):
    """
    The bytes per token that autograd saves in the forward pass: (by one block, outside the blocks), without logits.
    `half`: matmuls run in 16 bits, under autocast. No layer saves a score for each pair of tokens, because attention is
    fused (flash, or memory-efficient on a V100).
    """
    C, size = config.n_embd, 2 if half else 4  # bytes of a number that goes into a matmul
    # In float32: the input of both norms, and the log-sum-exp of each head. In the dtype of the matmuls: the output of
    # the first norm, query, key and value, the output of attention, that of the second norm, and the hidden layer of
    # the MLP before and after its activation.
    block = 2 * 4 * C + size * C * (1 + 3 + 1 + 1 + 4 + 4) + 4 * config.n_head
    if config.modern:
        block += size * 2 * C  # query and key after their norms
    if dropout > 0:
        block += 2 * C  # masks
    around = 4 * C + size * C + (3 * 4 * C if config.modern else 0) + (C if dropout > 0 else 0)
    return block, around


def memory(model, optimizer, half, dropout, batch_size, checkpointing=False, gpus=1, fsdp=False):
    """Bytes on one GPU by part, at the peak of an iteration with micro-batches of batch_size sequences."""
    config, tokens = model.config, batch_size * model.config.block_size
    weights, moments = state_bytes(vars(config), config.vocab_size, optimizer)
    shards = gpus if fsdp else 1
    parts = {'weights': weights / shards, 'gradients': weights / shards, 'optimizer': moments / shards}
    if fsdp:  # this block and the next one, unsharded
        parts['whole blocks'] = 2 * sum(p.numel() for p in model.transformer.h[0].parameters()) * (6 if half else 4)
    if half and not (fsdp and checkpointing):  # autocast converts each weight once per pass, and autograd keeps that
        parts['16-bit weights'] = 2 * sum(p.numel() for p in model.parameters() if p.dim() == 2)
    block, around = saved_bytes(config, half, dropout)
    # with checkpointing the input of each block, and all of one block at a time
    blocks = config.n_layer * 4 * config.n_embd + block if checkpointing else config.n_layer * block
    parts['activations'] = tokens * (blocks + around)
    # all in float32: the saved output of log-softmax, and two gradients of its size in the backward pass
    parts['logits'] = 12 * config.vocab_size * (min(tokens, 1024) if checkpointing else tokens)
    return parts


def largest_batch(budget, **options):
    """The largest batch_size whose memory() is within `budget` bytes; 0 if not even 1 is."""
    return bisect.bisect_right(range(1, 2**30), budget, key=lambda n: sum(memory(**options, batch_size=n).values()))


def speed(model, gpu, gpus):
    """(lowest, highest) tokens/s to expect of all GPUs together in 16 bits."""
    low, high, _ = find_mfu(gpu)
    at_peak = gpus * gpu.tflops * 1e12 / model.flops_per_token()
    return low * at_peak, high * at_peak


def memory_lines(gpu, batch_size, options):
    """A table of memory() by part, without and with gradient checkpointing, and the largest batch_size that fits."""
    columns = [memory(**options, batch_size=batch_size, checkpointing=on) for on in (False, True)]
    budget = gpu.memory_gb * GB - RESERVED
    yield f'memory of a GPU in GB, at batch_size={batch_size}; the second column with gradient_checkpointing'
    for part in columns[0]:
        yield f'  {part:18} {columns[0][part] / GB:8.2f} {columns[1].get(part, 0) / GB:8.2f}'
    yield (f'  {"all":18} {sum(columns[0].values()) / GB:8.2f} {sum(columns[1].values()) / GB:8.2f}   of '
           f'{budget / GB:.0f}; {RESERVED / GB:.0f} are kept free')
    largest = [largest_batch(budget, **options, checkpointing=on) for on in (False, True)]
    yield f'  {"largest batch_size":18} {largest[0] or "none":>8} {largest[1] or "none":>8}'
    config = options['model'].config
    head_dim = config.n_embd // config.n_head
    if options['half'] and head_dim % 8:
        yield f'  heads of {head_dim} channels, not a multiple of 8: no fused attention, more memory than this'


def time_lines(gpu, tokens, options, settings):
    """Speed, days, energy and disk of a run over so many tokens with these settings of train.py."""
    model, gpus = options['model'], options['gpus']
    if not options['half']:
        yield 'speed   not known in float32: the table of GPUs has their peaks in 16 bits'
        return
    low, high = speed(model, gpu, gpus)
    low_mfu, high_mfu, source = find_mfu(gpu)
    yield f'speed   {low:,.0f} to {high:,.0f} tokens/s: {low_mfu:.0%} to {high_mfu:.0%} of the peak'
    yield f'        others: {source}'
    yield '        with gradient_checkpointing about a quarter less: a second forward pass'
    days = [tokens / one / 86400 for one in (high, low)]
    span = [f'{one:.3g} days' if one >= 1 else duration(86400 * one) for one in days]
    size = f'{tokens / 1e9:.3g} billion' if tokens >= 1e9 else f'{tokens / 1e6:.3g} million'
    yield f'time    {span[0]} to {span[1]} for {size} tokens'
    kwh = [24 * one * gpus * gpu.watts / 1000 for one in days]
    digits = 0 if kwh[0] >= 10 else 3
    yield f'energy  {kwh[0]:,.{digits}f} to {kwh[1]:,.{digits}f} kWh of the GPUs, at {gpu.watts} W each'
    kept = settings['max_iters'] // settings['keep_interval'] if settings['keep_interval'] else 0
    yield (f'disk    {disk_bytes(settings, model.config.vocab_size) / GB:.1f} GB: the best weights, '
           + f'{kept} that are kept, ' * (kept > 0) + 'two states, and a third while it is written')
