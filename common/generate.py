"""
From logits to ids, as a ladder of small functions: each is built from those above it. It knows no tokenizer; ids come
in and ids go out. `model` is a GPT, or anything with its config that is called in the same way.
"""
import copy
import math

import torch

CHECK_INTERVAL = 64  # tokens: to look at logits on a GPU means to wait for it


class KVCache:
    """
    The keys and values of the tokens so far, so that a step computes only the new token. The buffers have room for
    `size` tokens and are allocated once. When they are full, a new token overwrites the oldest one: sliding-window
    attention, which suits rotary positions. With learned positions next_logits() starts over before that.
    `padding` (B,) int64: how many ids at the start of each row are padding, for prompts of different lengths.
    `static`: every step of one token has the same shapes, as a compiled one needs; it then reads the whole buffers.
    """

    def __init__(self, size, padding=None, static=False):
        self.size, self.row_padding, self.static = size, padding, static
        self.dtype = None  # of keys and values, the model's cache_dtype; None: float32 on a CPU, elsewhere that of k
        self.keys, self.values = [], []  # of each layer (B, n_head, size, head_dim)
        self.last = None  # the embeddings of the last tokens, (B, count, n_embd)
        self.begin(0)

    def begin(self, origin):
        """Empty the cache. The next ids are those from index `origin` on."""
        self.origin, self.length = origin, 0  # ids left out; tokens seen since
        self.padding = None if self.row_padding is None else (self.row_padding - origin).clamp(min=0)
        if self.last is not None:
            self.last.zero_()

    def prepare(self, T, device):
        """Set the slots, positions and mask of T new tokens, once for all layers."""
        new = torch.arange(self.length, self.length + T, device=device)
        self.slots = new % self.size
        fixed_shape = self.static and T == 1
        self.used = self.size if fixed_shape else min(self.length + T, self.size)
        needs_mask = fixed_shape or self.padding is not None or (self.length > 0 and T > 1)
        self.mask = self.attention_mask(new) if needs_mask else None
        self.positions = new  # (T,), or (B, T) with padding, where each row counts from its first real token
        if self.padding is not None:
            self.is_text = new >= self.padding[:, None]
            self.positions = (new - self.padding[:, None]).clamp(min=0)

    def attention_mask(self, queries):
        """The mask of the tokens at `queries` (T,): (1 or B, 1, T, used) bool, True where they may attend."""
        ends = self.length + len(queries)
        keys = torch.arange(self.used, device=queries.device)
        keys = torch.where(keys + self.size < ends, keys + self.size, keys)  # a later token overwrote the slot
        hidden = (keys > queries[:, None])[None]
        if self.padding is not None:  # padding attends to padding, because a row without any key gives nan
            padding = self.padding[:, None, None]
            hidden = hidden | ((keys < padding) & (queries[:, None] >= padding))
        return ~hidden[:, None]

    def after_previous(self, x, count):
        """
        New embeddings x (B, T, n_embd) with the `count` before them in front, (B, count + T, n_embd); zeros where there
        are none, or padding.
        """
        if self.last is None:
            self.last = self.buffer(x.new_zeros(x.size(0), count, x.size(2)))
        if self.padding is not None:
            x = x * self.is_text[..., None]
        longer = torch.cat((self.last, x), dim=1)
        self.last.copy_(longer[:, -count:])
        return longer

    def update(self, layer, k, v):
        """
        Store the new k and v (B, n_head, T, head_dim) of a layer. Returns the keys and values that the new tokens may
        attend to, (B, n_head, S, head_dim), in float32 on a CPU, and their mask. Without a mask (None) attention is
        causal, or to everything if T is 1.
        """
        if layer == len(self.keys):
            # float32 on a CPU: PyTorch attends to 900 tokens in 7 times as long in bfloat16, 14 times in float16
            dtype = self.dtype or (torch.float32 if k.device.type == 'cpu' else k.dtype)
            for buffers in (self.keys, self.values):
                buffers.append(self.buffer(k.new_zeros(*k.shape[:2], self.size, k.size(3), dtype=dtype)))
        if self.dtype == torch.float16:
            for new in (k, v):
                check_finite(new.half(), self.dtype)
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.slots, k.to(keys.dtype))
        values.index_copy_(2, self.slots, v.to(values.dtype))
        keys, values = keys[:, :, :self.used], values[:, :, :self.used]
        if keys.dtype == torch.float16 and k.dtype == torch.float32:  # PyTorch attends to several tokens in float32
            keys, values = keys.float(), values.float()
        return keys, values, self.mask

    def buffer(self, tensor):
        if self.static:
            torch._dynamo.mark_static_address(tensor)  # otherwise CUDA graphs copy it in and out at each step
        return tensor

    def expand(self, rows):
        """A new cache that goes on with these rows (int64) of the batch, as many as they are; this one stays."""
        other = copy.copy(self)
        other.keys, other.values = [k[rows] for k in self.keys], [v[rows] for v in self.values]
        other.last = None if self.last is None else self.last[rows]
        if self.row_padding is not None:
            other.row_padding, other.padding = self.row_padding[rows], self.padding[rows]
        return other

    def reorder(self, rows):
        """Continue with these rows (B,) int64 of the batch, some repeated, some dropped, in the same buffers."""
        for buffer in (*self.keys, *self.values, self.last):
            if buffer is not None:
                buffer.copy_(buffer[rows])


def filter_top_p(logits, top_p):
    """
    Keep the likeliest ids of each row (B, V) that together reach the probability top_p, at least one; the others become
    -inf. 1 or None is off. Nucleus sampling: Holtzman et al. 2019, https://arxiv.org/abs/1904.09751
    """
    if top_p is None or top_p >= 1.0:
        return logits
    ascending, order = logits.sort(dim=-1)
    unlikely = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    unlikely[:, -1] = False
    return logits.masked_fill(unlikely.scatter(1, order, unlikely), -float('inf'))


def filter_min_p(logits, min_p):
    """
    Keep the ids of each row (B, V) that are at least min_p times as likely as the likeliest. 0 or None is off.
    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082
    """
    if not min_p:
        return logits
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), -float('inf'))


def penalize_repetition(logits, idx, penalty):
    """
    Make the ids in idx (B, T) less likely: divide their logits (B, V) by `penalty`, or multiply negative ones. Ids from
    V on are ignored. 1 or None is off. Keskar et al. 2019, https://arxiv.org/abs/1909.05858
    """
    if penalty is None or penalty == 1.0:
        return logits
    V = logits.size(1)
    wide, idx = torch.nn.functional.pad(logits, (0, 1)), idx.clamp(max=V)  # a spare column for the ids to ignore
    seen = wide.gather(1, idx)
    return wide.scatter(1, idx, torch.where(seen < 0, seen * penalty, seen / penalty))[:, :V]


def candidates(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """
    The ids to draw from, by logits (B, V): (logits, ids), both (B, k), with -inf for ids that are filtered out; ids is
    None if they are 0 to V - 1. top_k (0 or None: off) comes first, so that the other filters see only k logits.
    """
    logits, ids = torch.topk(logits, min(top_k, logits.size(-1))) if top_k else (logits, None)
    return filter_min_p(filter_top_p(logits / temperature, top_p), min_p), ids


def sample(logits, temperature=1.0, generator=None, **filters):
    """One id per row (B, 1) from logits (B, V). Temperature 0 is greedy: the largest logit, nothing random."""
    if temperature < 1e-5:  # dividing by less gives infinities
        return logits.argmax(dim=-1, keepdim=True)
    logits, ids = candidates(logits, temperature, **filters)
    drawn = torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1, generator=generator)
    return drawn if ids is None else ids.gather(1, drawn)


def feed(model, ids, cache, every=False):
    """
    The logits (B, V) after ids (B, T), which follow the tokens in the cache and are added to it; with `every` those
    after each of the ids, (B, T, V).
    """
    cache.dtype = getattr(model, 'cache_dtype', None)
    cache.prepare(ids.size(1), ids.device)
    logits = model(ids, targets=ids, cache=cache)[0] if every else model(ids, cache=cache)[0][:, -1]
    cache.length += ids.size(1)
    return logits


def next_logits(model, idx, cache=None, step=None):
    """
    The logits (B, V) after idx (B, T). The cache, if any, has seen the beginning of idx, and only the rest is computed.
    Without a cache the model sees the last block_size ids. A full cache of a model with learned positions starts over
    with the last half of its size; one step in size / 2 then costs as much as half a prompt. With rotary positions it
    slides if tokens come one at a time, and starts over if several do not fit. `step`, the compiled model, is called
    instead of the model for a single new token.
    """
    if cache is None:
        return model(idx[:, -model.config.block_size:])[0][:, -1]
    new = idx.size(1) - cache.origin - cache.length
    slides = model.config.modern and new == 1 and cache.length > 0
    if cache.length + new > cache.size and not slides:
        kept = cache.size if cache.length == 0 else (cache.size + 1) // 2
        cache.begin(idx.size(1) - kept)
    # a copy, because a compiled step needs the same strides each time
    ids = idx[:, cache.origin + cache.length:].clone(memory_format=torch.contiguous_format)
    return feed(step if step is not None and ids.size(1) == 1 and cache.length > 0 else model, ids, cache)


def dtype_behind(logits, cache):
    """The dtype with the smallest range that logits were computed in: that of the keys and values, if it is float16."""
    return torch.float16 if cache is not None and cache.dtype == torch.float16 else logits.dtype


def check_finite(values, dtype):
    """ValueError unless all `values` that a model computed in `dtype` are finite. Waits for the device."""
    if not all(math.isfinite(extreme.item()) for extreme in values.aminmax()):  # ten times as fast as each of them
        if dtype == torch.float16:
            raise ValueError('the model computes numbers that are too large for float16; try --dtype=float32')
        name = str(dtype).removeprefix('torch.')
        raise ValueError(f'the model computes numbers that are not finite in {name}, which has the largest range: its '
                         'training has diverged; try an earlier checkpoint of it')


def next_token(model, idx, cache=None, step=None, vocab_size=None, repetition_penalty=None, check=True, **options):
    """
    The next id (B, 1) after idx (B, T), and its logits (B, V). Ids from vocab_size on are padding, never drawn.
    With `check` ValueError if a logit is not finite.
    """
    logits = next_logits(model, idx, cache, step)[:, :vocab_size]
    logits, dtype = logits.float(), dtype_behind(logits, cache)
    if check:
        check_finite(logits, dtype)
    if cache is not None and cache.row_padding is not None:
        padding = torch.arange(idx.size(1), device=idx.device) < cache.row_padding[:, None]
        idx = idx.masked_fill(padding, logits.size(1))
    try:
        return sample(penalize_repetition(logits, idx, repetition_penalty), **options), logits
    except RuntimeError:  # multinomial refuses what is not finite
        check_finite(logits, dtype)
        raise


@torch.no_grad()
def stream(model, idx, max_new_tokens, use_cache=True, padding=None, cache=None, step=None, logprobs=False, **options):
    """
    Continue idx (B, T). Yields for each step the ids (B, 1) and, with `logprobs`, the log-probabilities (B,) that the
    model itself gives them, before any sampling option; else None. `padding` is the KVCache's. `cache`: one made with
    that padding, which may have seen a beginning of idx. Other options as in next_token and sample.
    ValueError if the logits are no longer finite.
    """
    if cache is None and use_cache:
        cache = KVCache(min(model.config.block_size, idx.size(1) + max_new_tokens), padding, static=step is not None)
    for i in range(max_new_tokens):
        check = i % CHECK_INTERVAL == 0 or idx.device.type == 'cpu'
        token, logits = next_token(model, idx, cache, step, check=check, **options)
        idx = torch.cat((idx, token), dim=1)
        yield token, logits.log_softmax(dim=-1).gather(1, token)[:, 0] if logprobs else None


def generate(model, idx, max_new_tokens, **options):
    """idx (B, T) with its continuation, (B, T + max_new_tokens)."""
    return torch.cat([idx, *(token for token, _ in stream(model, idx, max_new_tokens, **options))], dim=1)


@torch.no_grad()
def beam_search(model, idx, max_new_tokens, num_beams, length_penalty=1.0, end_id=None, vocab_size=None,
                repetition_penalty=None, cache=None, step=None, progress=iter):
    """
    The num_beams likeliest continuations found for idx (1, T), best first: a list of (score, ids), with an end_id at
    the end if it came. Each step keeps the num_beams likeliest beginnings. A score is the log-probability divided by
    length ** length_penalty: above 0 longer texts gain, below 0 shorter ones. `progress` may wrap the range of steps.
    The same search as Hugging Face's with early_stopping=False. ValueError if the logits are no longer finite.
    """
    T, idx = idx.size(1), idx.expand(num_beams, -1)
    scores = torch.full((num_beams,), -float('inf'), device=idx.device)
    scores[0] = 0.0  # all beams are still the same: the first step expands only one
    ended = []
    try:
        for length in progress(range(1, max_new_tokens + 1)):
            logits = next_logits(model, idx, cache, step)[:, :vocab_size]
            logprobs = logits.float().log_softmax(dim=-1)
            logprobs = penalize_repetition(logprobs, idx, repetition_penalty) + scores[:, None]
            V = logprobs.size(1)
            # twice as many as needed, because one continuation of each beam may end it
            best, places = logprobs.flatten().topk(min(2 * num_beams, num_beams * V))
            if best[0].isnan():  # nan is the largest for topk. Each step waits for the device anyway
                check_finite(logits, dtype_behind(logits, cache))
            rows, tokens = places // V, places % V
            texts = torch.cat((idx[rows], tokens[:, None]), dim=1)
            ends = tokens == (-1 if end_id is None else end_id)
            ended += [(score / length ** length_penalty, text[T:]) for score, text, end
                      in zip(best[:num_beams].tolist(), texts.tolist(), ends.tolist()) if end]
            ended = sorted(ended, reverse=True)[:num_beams]
            going_on = (~ends).nonzero()[:num_beams, 0]
            idx, scores = texts[going_on], best[going_on]
            if cache is not None:
                cache.reorder(rows[going_on])
            if len(ended) == num_beams and ended[-1][0] >= scores[0].item() / length ** length_penalty:
                break
    except KeyboardInterrupt:  # return what was found so far
        pass
    length = max(1, idx.size(1) - T)
    going = [(score / length ** length_penalty, text[T:]) for score, text in zip(scores.tolist(), idx.tolist())]
    # a small vocabulary may not fill all beams: the unused ones are still at -inf
    return [one for one in sorted(ended + going, reverse=True) if one[0] > -float('inf')][:num_beams]
