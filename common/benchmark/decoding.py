"""How fast text is generated in several ways, which take turns because the speed of a machine drifts."""
import statistics
import time

import torch
from tqdm import tqdm

from common import generate, inference
from common.benchmark import roofline
from common.device import synchronize

BYTES = {'float32': 4, 'bfloat16': 2, 'float16': 2, 'int8': 1}  # of a weight in each precision
TOP_K = 200  # as in sample.py
STRETCH = 100  # tokens at the beginning and at the end of a long text, to see what attention to it costs


def ours(model, precision, batch, sizes, device, use_cache=True, compiled=False):
    """
    A function that writes so many tokens and returns when each came, for a new model, which is changed in place.
    `sizes`: (tokens in the prompt, tokens to generate, top_k).
    """
    prompt_tokens, max_new_tokens, top_k = sizes
    model.eval()
    if device == 'cpu' and use_cache and not compiled:
        inference.specialize(model, 'auto' if precision == 'int8' else precision, precision == 'int8')
    else:
        inference.convert(model, device, 'bfloat16' if precision == 'int8' else precision)
        if precision == 'int8':
            inference.quantize(model)
    idx = torch.zeros(batch, prompt_tokens, dtype=torch.long, device=device)
    size = min(model.config.block_size, prompt_tokens + max_new_tokens)
    step = inference.compile_step(model, batch, size, device) if compiled else None

    def write(tokens):
        cache = generate.KVCache(size, static=step is not None) if use_cache else None
        steps = generate.stream(model, idx, tokens, use_cache=use_cache, cache=cache, step=step, top_k=top_k)
        return [time.perf_counter() for _ in steps]
    return write


def measure(ways, max_new_tokens, rounds, device):
    """
    Time `ways`, {name: a function that writes so many tokens}, in turn. Returns ({name: [steps/s]}, {name: [speed of
    the last STRETCH tokens by that of the first]} for long texts of ours, bytes/s of reading memory).
    """
    speeds, last_by_first, bandwidths = {way: [] for way in ways}, {}, []
    numbers = torch.randn(2**27, device=device)
    for write in ways.values():
        write(min(3, max_new_tokens))  # warm up
    for way in tqdm(list(ways) * rounds, disable=None, leave=False):
        bandwidths.append(numbers.nbytes / roofline.seconds(numbers.sum, device))
        begin = time.perf_counter()
        times = ways[way](max_new_tokens)
        synchronize(device)
        speeds[way].append(max_new_tokens / (time.perf_counter() - begin))
        if device == 'cpu' and isinstance(times, list) and len(times) >= 3 * STRETCH:  # a GPU is behind with its tokens
            ratio = (times[STRETCH] - times[0]) / (times[-1] - times[-1 - STRETCH])
            last_by_first.setdefault(way, []).append(ratio)
    return speeds, last_by_first, statistics.median(bandwidths)


def figures(speeds, last_by_first):
    """{what: figure}: the median speed of each way; at batch 1 ours by that of the others; of long texts the end's."""
    found = {way: statistics.median(values) for way, values in speeds.items()}
    one = {way.removesuffix(', batch 1'): speed for way, speed in found.items() if way.endswith(', batch 1')}
    ratios = {f'times as fast as {way}': one[precision] / speed for way, speed in one.items()
              for precision in [way.rpartition(', ')[2]] if way != precision and precision in one}
    ends = {f'{way}: the last {STRETCH} tokens by the first': statistics.median(values)
            for way, values in last_by_first.items()}
    return {**found, **ratios, **ends}


def table(figures, speeds, weights, bandwidth):
    """Lines for what measure() gave. `weights`: of the matrices that multiply a token, their number."""
    yield f'reading memory: {bandwidth / 1e9:.1f} GB/s\n'
    yield f'{"":42} steps/s  (lowest to highest)  share of what reading allows'
    for way, values in speeds.items():
        spread = f'{min(values):.1f} to {max(values):.1f}'
        read = weights * next(BYTES[word] for word in way.split(', ') if word in BYTES)
        yield f'{way:42} {figures[way]:7.1f}  {spread:19}  {figures[way] * read / bandwidth:.0%}'
    for what, figure in figures.items():
        if what not in speeds:
            yield f'{figure:.2f} {what}' if what.startswith('times') else f'{what}: {figure:.2f}'
