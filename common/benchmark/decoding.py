"""How fast text is generated in several ways, which take turns because the speed of a machine drifts."""
import statistics

import torch
from tqdm import tqdm

from common import generate, inference
from common.benchmark import roofline

DTYPES = 'float32', 'bfloat16', 'float16'


def ours(model, dtype, batch, sizes, device, use_cache=True, compiled=False):
    """
    (a function that generates so many tokens, the bytes of weights that a step reads) for a new model, which is changed
    in place. `sizes`: (tokens in the prompt, tokens to generate, top_k).
    """
    prompt_tokens, max_new_tokens, top_k = sizes
    weights = read_bytes(model.eval()) // {'float32': 1, 'int8': 4}.get(dtype, 2)
    if device == 'cpu' and use_cache and not compiled:
        inference.specialize(model, 'auto' if dtype == 'int8' else dtype, dtype == 'int8')
    else:
        inference.convert(model, device, 'bfloat16' if dtype == 'int8' else dtype)
        if dtype == 'int8':
            inference.quantize(model)
    idx = torch.zeros(batch, prompt_tokens, dtype=torch.long, device=device)
    size = min(model.config.block_size, prompt_tokens + max_new_tokens)
    step = inference.compile_step(model, batch, size, device) if compiled else None

    def write(tokens):
        cache = generate.KVCache(size, static=step is not None) if use_cache else None
        model.generate(idx, tokens, top_k=top_k, use_cache=use_cache, cache=cache, step=step)
    return write, weights


def theirs(config, dtype, sizes, device):
    """The same for Hugging Face's GPT-2 of that shape at batch 1. ImportError without transformers."""
    import transformers
    transformers.logging.set_verbosity_error()
    prompt_tokens, _, top_k = sizes
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd, n_positions=config.block_size,
        vocab_size=config.vocab_size, bos_token_id=0, eos_token_id=None, pad_token_id=0))
    model.eval().to(device, getattr(torch, dtype))
    idx = torch.zeros(1, prompt_tokens, dtype=torch.long, device=device)

    def write(tokens):
        model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=tokens, do_sample=True, top_k=top_k)
    return write, read_bytes(model)


def read_bytes(model):
    """The bytes of all matrices that multiply a token."""
    # no Embedding, of which only one row is read; Hugging Face's Conv1D is no Linear, but has such a weight too
    weights = [module.weight for module in model.modules()
               if hasattr(module, 'weight') and not isinstance(module, torch.nn.Embedding)]
    return sum(weight.nbytes for weight in weights if weight is not None and weight.dim() == 2)


def measure(ways, max_new_tokens, rounds, device):
    """Time `ways`, {name: ours() or theirs()}, in turn. Returns ({name: [steps/s]}, bytes/s of reading memory)."""
    speeds, bandwidths = {way: [] for way in ways}, []
    numbers = torch.randn(2**27, device=device)
    for write, _ in ways.values():
        write(3)  # warm up
    for way in tqdm(list(ways) * rounds, disable=None, leave=False):
        bandwidths.append(numbers.nbytes / roofline.seconds(numbers.sum, device))
        speeds[way].append(max_new_tokens / roofline.seconds(lambda: ways[way][0](max_new_tokens), device))
    return speeds, statistics.median(bandwidths)


def table(ways, speeds, bandwidth):
    yield f'reading memory: {bandwidth / 1e9:.1f} GB/s\n'
    yield f'{"":42} steps/s  (lowest to highest)  share of what reading allows'
    for way, (_, weights) in ways.items():
        speed, spread = statistics.median(speeds[way]), f'{min(speeds[way]):.1f} to {max(speeds[way]):.1f}'
        yield f'{way:42} {speed:7.1f}  {spread:19}  {speed * weights / bandwidth:.0%}'
