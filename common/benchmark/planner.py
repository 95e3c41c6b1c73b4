"""
What a run needs and how fast it may be, derived without running it: memory by part, the largest batch, tokens/s, days,
energy, disk. Measurements are in docs/measurements.md.
"""
import bisect
import functools
import os
from dataclasses import replace

import torch

from common import device
from common.benchmark import roofline
from common.console import duration
from common.settings import disk_bytes, state_bytes

GB = 1e9
RESERVED = 2 * GB  # for CUDA itself, library workspaces and fragmentation; on a CPU for the system and PyTorch
LOGITS_AT_ONCE = 2**27  # as in model.py; a test compares them
UNFUSED = 512  # on a CPU in 16 bits attention is written out up to this context (common/training/attention.py)

# The share of the peak (MFU) that others reached in training: lowest, highest, source. Rows of device.GPUS are found by
# a piece of their pattern. All are by the count of GPT.flops_per_token(), of which a speed of GPT-2 124M gives a share
# at 0.855 GFLOP a token:
#   nanoGPT issue 215: 1,097 ms for 61,440 tokens. nanoGPT README: 295 billion tokens in 4 days on 8 A100s.
#   llm.c discussion 481: 10.26 billion tokens in 94 minutes on 8 A100s; modded-nanogpt README: 10 billion in 45 minutes
#   on 8 H100s. nanoGPT issue 182 and pull request 464: "29%" and "104%" of an A100's 312 TFLOP/s.
#   tylerromero.com/posts/nanogpt-speedrun-worklog: llm.c's PyTorch trainer, 220,700 tokens/s on two RTX 4090.
#   gilesthomas.com, "Writing an LLM from scratch", part 28: up to 20,000 tokens/s on an RTX 3090.
# The others give a share of the peak: nanochat pull request 147 and dev/LOG.md, Megatron-LM (arXiv 1909.08053),
# DeepSpeed's "fastest BERT training". That of a CPU is of what a matmul reaches: 768 tokens in 27.4 ms, and 4,096 in
# 927 ms, where it reaches 0.398 TFLOP/s (docs/measurements.md).
THROTTLED = (0.15, 0.35, 'none published on such a GPU. A guess, lower than for others: it must do with about 70 W')
GUESS = (0.25, 0.50, 'none published on such a GPU. A guess')
MFU = {
    'V100': (0.38, 0.52, 'compiled, 38% at 124M (nanoGPT issue 215); 48% at 1.2B (Megatron-LM); 52% for BERT-Large '
                         '(DeepSpeed)'),
    'A100': (0.29, 0.74, 'at 124M, compiled 29% (nanoGPT, 4 days on 8), in CUDA 62% (llm.c, 94 minutes on 8); 74% for '
                         "nanochat's d20 (its pull request 147)"),
    'H100': (0.33, 0.46, 'at 124M, compiled 33% (nanoGPT pull request 464), 40% (llm.c, 45 minutes on 8); 41% and '
                         "46% for nanochat's d12 and d18 (its LOG.md)"),
    'H200': (0.33, 0.46, 'none published; 33% to 46% on H100s, whose peak is the same'),
    'RTX 3090': (0.24, 0.57, 'at 124M, plain textbook code 24% (gilesthomas.com, part 28); compiled 57%, but on an RTX '
                             '4090'),
    'RTX 4090': (0.55, 0.57, 'at 124M, compiled 55% (nanoGPT issue 182), 57% (tylerromero.com, two cards); plain code '
                             'on an RTX 3090 24%'),
    'RTX 5090': (0.24, 0.57, 'none published; 24% by plain code on an RTX 3090, 57% compiled on an RTX 4090'),
    r'\bT4\b': THROTTLED, r'\bL4\b': THROTTLED,
    'CPU': (0.36, 0.79, 'measured on 2 cores in bfloat16: 36% at 0.8M parameters, 79% at 10.7M'),
}


def gpu_by_name(name, dtype='float16'):
    """
    The row of device.GPUS called `name`. 'auto' is the GPU here, with its real memory; 'cpu' this machine without one,
    its peak what a matmul in `dtype` (a name) reaches in a second of trying. ValueError where there is no such thing.
    """
    if name.lower() in device.GPUS:
        return device.GPUS[name.lower()]
    known = f'known: {", ".join(device.GPUS)}, cpu, and auto for the one here'
    near = [row for row in device.GPUS if row.startswith(name.lower())]
    if near:
        known = f'did you mean {" or ".join(near)}?'
    if name == 'cpu':
        if not hasattr(os, 'sysconf'):
            raise ValueError("gpu=cpu needs the size of this machine's memory, which Windows does not tell")
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        return device.Gpu('CPU', roofline.matmul_flops('cpu', dtype) / 1e12, memory / GB, bandwidth=0, watts=0)
    if name != 'auto':
        raise ValueError(f'gpu={name!r} is not in the table; {known}')
    here = device.find_gpu() if torch.cuda.is_available() else None
    if here is None:
        raise ValueError(f'gpu=auto finds no GPU here whose peak is known; {known}')
    # its name does not tell its power
    return replace(here, memory_gb=torch.cuda.get_device_properties(0).total_memory / GB, watts=0)


def is_cpu(gpu):
    """Whether a row is gpu_by_name('cpu')."""
    return gpu.pattern == 'CPU'


def find_mfu(gpu):
    """(lowest, highest, source) of the MFU to expect on a row of device.GPUS, or on a CPU."""
    return next((mfu for name, mfu in MFU.items() if name in gpu.pattern), GUESS)


def saved_bytes(config, half, dropout, compiled=True, on_cpu=False):
    """
    The bytes per token that autograd saves in the forward pass: (by one block, outside the blocks), without logits.
    `half`: matmuls run in 16 bits, under autocast. No layer saves a score for each pair of tokens, because attention is
    fused (flash, or memory-efficient on a V100); a CPU's is not always.
    """
    C, size = config.n_embd, 2 if half else 4  # bytes of a number that goes into a matmul
    # of the input of a norm: on a GPU autocast computes norms in float32, and only compiled code converts it again
    # instead of keeping it
    norm = size if compiled or on_cpu else 4
    # The input of both norms. In the dtype of the matmuls: the output of the first norm, query, key and value, the
    # output of attention, that of the second norm, and the hidden layer of the MLP before and after its activation. In
    # float32 the log-sum-exp of each head.
    block = 2 * norm * C + size * C * (1 + 3 + 1 + 1 + 4 + 4) + 4 * config.n_head
    if config.modern:
        block += size * 4 * C  # query and key after they are stacked, and after they are rotated
    if dropout > 0:
        block += 2 * C * (4 if on_cpu else 1)  # masks
    if on_cpu:  # scores where attention is not fused: after softmax, and with dropout its mask and what is left
        scores = (5 if dropout > 0 else 2) if half and config.block_size <= UNFUSED else 12 if dropout > 0 else 0
        block += scores * config.n_head * config.block_size
    around = norm * C + size * C + (3 * 4 * C if config.modern else 0)
    if dropout > 0:
        around += C * (4 if on_cpu else 1)
    return block, around


def loss_bytes(config, tokens, half, compiled=True, on_cpu=False):
    """The most bytes that the logits of so many tokens, the loss and its gradients take (model.py, GPT.head)."""
    size, logits, capped = 2 if half else 4, tokens * config.vocab_size, config.softcap > 0.0
    if logits <= LOGITS_AT_ONCE:
        # compiled code keeps the logits and makes their gradient, with a softcap in the place of the unbounded ones;
        # else the log-probabilities in float32 are kept, with a softcap the tanh, too, and two gradients in float32
        # are made
        return logits * (2 * size if compiled else 12 + size * capped)
    # Of a chunk: logits, log-probabilities in float32, and the gradient of the chunk before; a CPU converts 16-bit
    # logits first. Eager code bounds logits in float32 in the place of those in 16 bits, compiled code for a CPU keeps
    # both, and softmax twice; that for a GPU should bound them anew where it reads them. And the gradient of the
    # weights, in float32; compiled code adds up those of all chunks at the end.
    chunks = -(-logits // LOGITS_AT_ONCE)
    gradients = 4 + (chunks * size if compiled else 0)
    number = 12 if on_cpu else 2 * size + 4
    if capped and (on_cpu or not compiled):
        number = 16 if compiled else size + 8
    return -(-tokens // chunks) * config.vocab_size * number + gradients * config.vocab_size * config.n_embd


@functools.lru_cache(maxsize=1)  # largest_batch() asks thousands of times
def numbers_in_matrices(model):
    return sum(p.numel() for p in model.parameters() if p.dim() == 2)


def memory(model, optimizer, half, dropout, batch_size, checkpointing=False, gpus=1, fsdp=False, compiled=True,
           on_cpu=False):
    """Bytes on one GPU by part, at the peak of an iteration with micro-batches of batch_size sequences."""
    config, tokens, size = model.config, batch_size * model.config.block_size, 2 if half else 4
    weights, moments = state_bytes(vars(config), config.vocab_size, optimizer)
    shards = gpus if fsdp else 1
    parts = {'weights': weights / shards, 'gradients': weights / shards, 'optimizer': moments / shards}
    if fsdp:  # this block and the next one, and what is in no block; 8 bytes a number: in 16 bits itself and its
        # gradient, and the gradient in float32 to be reduced
        one_block = sum(p.numel() for p in model.transformer.h[0].parameters())
        parts['whole blocks'] = 8 * (weights / 4 - (config.n_layer - 2) * one_block)
    elif half:  # autocast converts each weight once per pass, and autograd keeps that
        parts['16-bit weights'] = 2 * numbers_in_matrices(model)
    block, around = saved_bytes(config, half, dropout, compiled, on_cpu)
    logits = loss_bytes(config, tokens, half, compiled, on_cpu)
    # with checkpointing the input of each block, and all of one block at a time
    kept, again = (size * config.n_embd, block) if checkpointing else (block, 0)
    # when the logits, and with checkpointing the 16-bit weights, are gone: with the gradient of the MLP's hidden layer
    later = tokens * (again + 4 * size * config.n_embd) - logits - parts.get('16-bit weights', 0) * checkpointing
    return {**parts, 'activations': tokens * (config.n_layer * kept + around) + max(0, later), 'logits': logits}


def largest_batch(budget, **options):
    """
    The largest batch_size whose memory() is within `budget` bytes; 0 if not even 1 is. The logits take less where they
    begin to be computed in chunks, so what fits is looked for from above.
    """
    def needed(batch_size, without=()):
        return sum(value for part, value in memory(**options, batch_size=batch_size).items() if part not in without)
    batch_size = bisect.bisect_right(range(1, 2**30), budget, key=lambda n: needed(n, without=('logits',)))
    while batch_size and needed(batch_size) > budget:
        batch_size -= 1
    return batch_size


def speed(model, gpu, gpus=1):
    """(lowest, highest) tokens/s to expect of all GPUs together in 16 bits, or of a CPU."""
    low, high, _ = find_mfu(gpu)
    at_peak = gpus * gpu.tflops * 1e12 / model.flops_per_token()
    return low * at_peak, high * at_peak


def plan(model, gpu, dtype, settings, gpus=1):
    """
    What a run with these settings of train.py needs and may reach on `gpus` times `gpu`, a row of device.GPUS or
    gpu_by_name('cpu'): a dict of figures, None where they are not known. `dtype` is a name. Bytes are given by part,
    without and with gradient checkpointing; the speed is that with or without, as the settings say.
    """
    half, batch_size, recompute = dtype != 'float32', settings['batch_size'], settings['gradient_checkpointing']
    options = dict(model=model, half=half, gpus=gpus, compiled=settings['compile'], on_cpu=is_cpu(gpu),
                   **{key: settings[key] for key in ('optimizer', 'dropout', 'fsdp')})
    budget = gpu.memory_gb * GB - RESERVED
    parts = [memory(**options, batch_size=batch_size, checkpointing=on) for on in (False, True)]
    largest = [largest_batch(budget, **options, checkpointing=on) for on in (False, True)]
    tokens_per_iter = settings['gradient_accumulation_steps'] * batch_size * settings['block_size']
    tokens, head_dim = settings['max_iters'] * tokens_per_iter, model.config.n_embd // model.config.n_head
    kept = settings['max_iters'] // settings['keep_interval'] if settings['keep_interval'] else 0
    mfu, tok_s, days, kwh, source = (None, None), (None, None), (None, None), (None, None), None
    if half or is_cpu(gpu):  # the table of GPUs has their peaks in 16 bits
        *mfu, source = find_mfu(gpu)
        tok_s = [value * (0.75 if recompute else 1.0) for value in speed(model, gpu, gpus)]
        days = [tokens / value / 86400 for value in reversed(tok_s)]
        if gpu.watts:
            kwh = [24 * value * gpus * gpu.watts / 1000 for value in days]
    return dict(
        parameters=model.get_num_params(), vocab_size=model.config.vocab_size, tokens_per_iter=tokens_per_iter,
        tokens=tokens, batch_size=batch_size, gradient_checkpointing=recompute, dtype=dtype,
        compile=settings['compile'], fused_attention=is_cpu(gpu) or not half or head_dim % 8 == 0, gpus=gpus,
        fsdp=settings['fsdp'], tflops=gpu.tflops, watts=gpu.watts or None, memory_gb=gpu.memory_gb,
        available_bytes=budget, bytes=parts[0], bytes_checkpointing=parts[1], total_bytes=sum(parts[0].values()),
        total_bytes_checkpointing=sum(parts[1].values()), largest_batch_size=largest[0],
        largest_batch_size_checkpointing=largest[1], fits=sum(parts[recompute].values()) <= budget,
        mfu_lowest=mfu[0], mfu_highest=mfu[1], mfu_source=source, tok_s_lowest=tok_s[0], tok_s_highest=tok_s[1],
        days_lowest=days[0], days_highest=days[1], kwh_lowest=kwh[0], kwh_highest=kwh[1],
        disk_bytes=disk_bytes(settings, model.config.vocab_size), kept_weights=kept)


def memory_lines(figures):
    """The memory of a plan() by part, without and with gradient checkpointing, and whether the run fits."""
    columns, available = [figures['bytes'], figures['bytes_checkpointing']], figures['available_bytes'] / GB
    code = 'compiled' if figures['compile'] else 'eager'
    yield (f'memory of {code} code in GB, at batch_size={figures["batch_size"]}; the second column with '
           'gradient_checkpointing')
    for part in columns[0]:
        yield f'  {part:18} {columns[0][part] / GB:8.2f} {columns[1][part] / GB:8.2f}'
    yield (f'  {"all":18} {figures["total_bytes"] / GB:8.2f} {figures["total_bytes_checkpointing"] / GB:8.2f}   of '
           f'{available:.0f}; {RESERVED / GB:.0f} are kept free')
    largest = [figures['largest_batch_size'], figures['largest_batch_size_checkpointing']]
    yield f'  {"largest batch_size":18} {largest[0] or "none":>8} {largest[1] or "none":>8}'
    if not figures['fused_attention']:
        yield '  heads whose channels are not a multiple of 8: no fused attention, more memory than this'
    recompute = figures['gradient_checkpointing']
    needed = figures['total_bytes_checkpointing' if recompute else 'total_bytes'] / GB
    verdict = (f'{needed:.{1 if needed >= 1 else 3}f} of {available:.0f} GB at batch_size={figures["batch_size"]}'
               + ' with gradient_checkpointing' * recompute)
    if figures['fits']:
        yield f'fits: {verdict}'
    else:
        most = f'the largest batch_size is {largest[recompute]}' if largest[recompute] else 'no batch_size does'
        more = f' ({largest[1]} with --gradient_checkpointing=True)' if largest[1] and not recompute else ''
        split = '; --fsdp=True splits the model over the GPUs' * (figures['gpus'] > 1 and not figures['fsdp'])
        yield f'does not fit: {verdict}; {most}{more}{split}'


def time_lines(figures):
    """Speed, days, energy and disk of a plan()."""
    if figures['mfu_source'] is None:
        yield 'speed   not known in float32: the table of GPUs has their peaks in 16 bits'
    else:
        on_cpu = figures['mfu_source'] == MFU['CPU'][-1]
        yield (f'speed   {figures["tok_s_lowest"]:,.0f} to {figures["tok_s_highest"]:,.0f} tokens/s: '
               f'{figures["mfu_lowest"]:.0%} to {figures["mfu_highest"]:.0%} of '
               + ('what a matmul reaches here' if on_cpu else 'the peak')
               + ', less a quarter' * figures['gradient_checkpointing'])
        yield '        ' + 'others: ' * (not on_cpu) + figures['mfu_source']
        yield '        with gradient_checkpointing about a quarter less: a second forward pass'
        if figures['gpus'] > 1:
            yield '        what travels between the GPUs takes time that is not counted; --fsdp=True sends more'
        days, tokens = [figures['days_lowest'], figures['days_highest']], figures['tokens']
        span = [f'{value:,.0f} days' if value >= 100 else f'{value:.3g} days' if value >= 1 else duration(86400 * value)
                for value in days]
        size = f'{tokens / 1e9:.3g} billion' if tokens >= 1e9 else f'{tokens / 1e6:.3g} million'
        yield f'time    {span[0]} to {span[1]} for {size} tokens'
    if figures['kwh_lowest'] is not None:
        digits = 0 if figures['kwh_lowest'] >= 10 else 1 if figures['kwh_lowest'] >= 1 else 3
        yield (f'energy  {figures["kwh_lowest"]:,.{digits}f} to {figures["kwh_highest"]:,.{digits}f} kWh of the GPUs, '
               f'at {figures["watts"]} W each')
    disk = figures['disk_bytes'] / GB
    yield (f'disk    {disk:.{1 if disk >= 1 else 3}f} GB: the best weights, '
           + f'{figures["kept_weights"]} that are kept, ' * (figures['kept_weights'] > 0)
           + 'two states, and a third while it is written')
