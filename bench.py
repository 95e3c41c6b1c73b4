"""
How fast this machine is, with the real code.

python bench.py --mode=sample                                    # tokens a second, beside Hugging Face's generate()
python bench.py --mode=sample --max_new_tokens=900 --rounds=1    # a long text; 10 minutes or more on a CPU
"""
import os
import statistics
import time

# -----------------------------------------------------------------------------
mode = 'sample'        # sample: how fast texts are written, by a new model: its weights make no difference to that
# model
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
vocab_size = 50257
modern = False
# what is measured
prompt_tokens = 16
max_new_tokens = 128
batch_sizes = [1, 4]   # texts at a time; the uncached loop and Hugging Face have the first alone
top_k = 200
rounds = 3             # each takes all in turn, as machines change their speed; medians are shown
use_huggingface = True  # its generate() with its cache too, where transformers is installed; within block_size
uncached = True        # the loop that computes the whole context for each token too
# system
device = 'auto'        # cuda, cuda:1, mps, cpu; auto: the best there is
compile = False        # the step compiled, too
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
exec(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'configurator.py'), encoding='utf-8').read())
# -----------------------------------------------------------------------------

import torch
from tqdm import tqdm

from common import generate, hardware, inference
from model import GPT, GPTConfig

DTYPES = ('float32', 'bfloat16', 'float16')


def read_bandwidth(numbers=2 ** 27):
    """A function that reads half a gigabyte, as fast as it can, and returns bytes/s."""
    numbers = torch.randn(numbers, device=device)

    def read():
        begin = time.perf_counter()
        numbers.sum()
        hardware.synchronize(device)
        return numbers.numel() * numbers.element_size() / (time.perf_counter() - begin)
    return read


def ours(dtype, batch, use_cache=True, compiled=False):
    """(a function that writes so many tokens and returns steps/s, the bytes of the weights that a step reads)."""
    model = GPT(config).eval().to(device, getattr(torch, 'bfloat16' if dtype == 'int8' else dtype))
    weights = read_bytes(model)
    if dtype == 'int8':
        weights //= 2
        inference.replace_linears(model, inference.Int8Linear)
    elif use_cache and not compiled:
        inference.pack(model, device, dtype)
    idx = torch.zeros(batch, prompt_tokens, dtype=torch.long, device=device)
    size = min(block_size, prompt_tokens + max_new_tokens)
    step = inference.compile_step(model, batch, size, device) if compiled else None

    def write(tokens):
        cache = generate.KVCache(size, static=compiled) if use_cache else None
        hardware.synchronize(device)
        begin = time.perf_counter()
        model.generate(idx, tokens, top_k=top_k, use_cache=use_cache, cache=cache, step=step)
        hardware.synchronize(device)
        return tokens / (time.perf_counter() - begin)
    return write, weights


def theirs(dtype):
    """The same for Hugging Face's GPT-2, one text at a time."""
    from transformers import GPT2Config, GPT2LMHeadModel
    shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=block_size, vocab_size=vocab_size)
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=None, pad_token_id=0))
    model.eval().to(device, getattr(torch, dtype))
    idx = torch.zeros(1, prompt_tokens, dtype=torch.long, device=device)

    def write(tokens):
        hardware.synchronize(device)
        begin = time.perf_counter()
        model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=tokens, do_sample=True, top_k=top_k)
        hardware.synchronize(device)
        return tokens / (time.perf_counter() - begin)
    return write, read_bytes(model)


def read_bytes(model):
    """The bytes of all matrices that a token is multiplied with."""
    # not an Embedding, of which one row is looked up; Hugging Face's Conv1D is no Linear, but has such a weight too
    weights = [module.weight for module in model.modules()
               if hasattr(module, 'weight') and not isinstance(module, torch.nn.Embedding)]
    return sum(weight.nbytes for weight in weights if weight is not None and weight.dim() == 2)


def has_transformers():
    try:
        import transformers
    except ImportError:
        print("transformers is not installed: Hugging Face's generate is left out")
        return False
    transformers.logging.set_verbosity_error()
    return True


def sample_speed():
    """Print how many steps a second each way to write a text takes, in turn, round after round."""
    first, rows = batch_sizes[0], {}
    for batch in batch_sizes:
        for dtype in (*DTYPES, 'int8'):
            rows[f'{dtype}, batch {batch}'] = ours(dtype, batch)
            if compile:
                rows[f'{dtype}, batch {batch}, compiled'] = ours(dtype, batch, compiled=True)
    if uncached:
        rows[f'float32, batch {first}, without the cache'] = ours('float32', first, use_cache=False)
    if use_huggingface and not modern and prompt_tokens + max_new_tokens <= block_size and has_transformers():
        rows.update({f'Hugging Face, {dtype}, batch 1': theirs(dtype) for dtype in DTYPES})
    read, speeds, bandwidths = read_bandwidth(), {name: [] for name in rows}, []
    for write, _ in rows.values():
        write(3)  # what is done once, is done
    with tqdm(total=rounds * len(rows), disable=None, leave=False) as progress:
        for _ in range(rounds):
            for name, (write, _) in rows.items():
                bandwidths.append(read())
                speeds[name].append(write(max_new_tokens))
                progress.update()
    bandwidth = statistics.median(bandwidths)
    print(f'{prompt_tokens} + {max_new_tokens} tokens, top_k {top_k}, {n_layer} layers, {n_embd} wide, on {device}: '
          f'medians of {rounds}\nreading memory: {bandwidth / 1e9:.1f} GB/s\n')
    print(f'{"":42} steps/s  (lowest to highest)  share of what reading allows')
    for name, (_, weights) in rows.items():
        speed = statistics.median(speeds[name])
        spread = f'{min(speeds[name]):.1f} to {max(speeds[name]):.1f}'
        print(f'{name:42} {speed:7.1f}  {spread:19}  {speed * weights / bandwidth:.0%}')


try:
    if mode != 'sample':
        raise ValueError(f"mode={mode!r} is not one of 'sample'")
    if min(rounds, max_new_tokens, prompt_tokens, vocab_size) < 1 or prompt_tokens > block_size:
        raise ValueError(f'rounds={rounds}, max_new_tokens={max_new_tokens}, vocab_size={vocab_size} and prompt_tokens='
                         f'{prompt_tokens} must be 1 or more, the last at most block_size={block_size}')
    if not batch_sizes or not all(isinstance(batch, int) and batch > 0 for batch in batch_sizes):
        raise ValueError(f'batch_sizes={batch_sizes} must be numbers from 1 up, as in [1, 4]')
    device = hardware.resolve_device(device)
    config = GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, modern=modern)
except ValueError as error:
    hardware.stop(error)
with torch.no_grad():
    sample_speed()
