"""
From logits to ids, as a ladder of small functions: each is composed of the one below. It knows no tokenizer; ids
come in and ids go out. `model` is a GPT, or anything that is called like one and has its config.
"""
import torch


class KVCache:
    """
    The keys and values of the tokens so far, in buffers of `size` tokens that are made once, so that a step computes
    one new token and not all of them again. When the buffers are full a new token takes the place of the oldest one,
    which suits rotary positions (sliding window attention); for learned ones advance() begins anew before that.
    `padding` (B,) int64: how many ids at the beginning of each row are none, so that prompts differ in length.
    """

    def __init__(self, size, padding=None):
        self.size, self.row_padding = size, padding
        self.keys, self.values = [], []  # of each layer (B, n_head, size, head_dim), in the dtype that attention has
        self.begin(0)

    def begin(self, origin):
        """Forget all. What comes next are the ids from `origin` on."""
        self.origin, self.length = origin, 0  # ids left out; tokens seen since
        self.last = None  # the embedding of the last token, (B, 1, n_embd)
        self.padding = None if self.row_padding is None else (self.row_padding - origin).clamp(min=0)

    def positions(self, T, device):
        """Where T new tokens stand in their texts: (T,), or (B, T) with padding."""
        positions = torch.arange(self.length, self.length + T, device=device)
        return positions if self.padding is None else (positions - self.padding[:, None]).clamp(min=0)

    def before(self, x):
        """What stands before each of the new tokens x (B, T, n_embd), and zeros before the first of a text."""
        last = torch.zeros_like(x[:, :1]) if self.last is None else self.last
        self.last = x[:, -1:]
        before = torch.cat((last, x[:, :-1]), dim=1)
        return before if self.padding is None else before * (self.positions(x.size(1), x.device) > 0)[..., None]

    def extend(self, layer, k, v):
        """
        Keep a layer's new k and v (B, n_head, T, head_dim). Returns all that the new tokens may look at, (B, n_head, S,
        head_dim), and where they may not: a mask (1 or B, 1, T, S) bool, or None for causal attention or none to hide.
        """
        if layer == len(self.keys):
            self.keys.append(k.new_zeros(*k.shape[:2], self.size, k.size(3)))
            self.values.append(torch.zeros_like(self.keys[layer]))
        T, at = k.size(2), self.length % self.size
        self.keys[layer][:, :, at:at + T] = k
        self.values[layer][:, :, at:at + T] = v
        S = min(self.length + T, self.size)
        return self.keys[layer][:, :, :S], self.values[layer][:, :, :S], self.mask(T, S, k.device)

    def mask(self, T, S, device):
        if self.padding is None and (T == 1 or self.length == 0):
            return None
        queries = torch.arange(self.length, self.length + T, device=device)[:, None]
        keys = torch.arange(S, device=device)
        keys = torch.where(keys + self.size < self.length + T, keys + self.size, keys)  # the oldest were written over
        hidden = (keys > queries)[None]
        if self.padding is not None:  # padding looks at padding, or it would have nothing to look at, which gives nan
            padding = self.padding[:, None, None]
            hidden = hidden | ((keys < padding) & (queries >= padding))
        return ~hidden[:, None]


def filter_top_p(logits, top_p):
    """
    Leave only the likeliest ids of each row (B, V) that together reach the probability top_p; at least one. 1 or None
    is off. Nucleus sampling: Holtzman et al. 2019, https://arxiv.org/abs/1904.09751
    """
    if top_p is None or top_p >= 1.0:
        return logits
    ascending, order = logits.sort(dim=-1)
    unlikely = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    unlikely[:, -1] = False
    return logits.masked_fill(unlikely.scatter(1, order, unlikely), -float('inf'))


def filter_min_p(logits, min_p):
    """
    Leave only the ids of each row (B, V) that are at least min_p times as likely as the likeliest. 0 or None is off.
    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082
    """
    if not min_p:
        return logits
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), -float('inf'))


def penalize_repetition(logits, idx, penalty):
    """
    Make the ids that idx (B, T) has less likely: their logits (B, V) divided by `penalty`, or multiplied where they are
    negative; ids from V on are none. 1 or None is off. Keskar et al. 2019, https://arxiv.org/abs/1909.05858
    """
    if penalty is None or penalty == 1.0:
        return logits
    V = logits.size(1)
    wide, idx = torch.nn.functional.pad(logits, (0, 1)), idx.clamp(max=V)  # one column for what is none
    seen = wide.gather(1, idx)
    return wide.scatter(1, idx, torch.where(seen < 0, seen * penalty, seen / penalty))[:, :V]


def candidates(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """
    What may come next, from logits (B, V): (logits, ids), both (B, k), with -inf for what may not; ids is None if they
    are 0 to V - 1. The top_k largest come first (0 or None: all), so that all that follows is about few.
    """
    logits, ids = torch.topk(logits, min(top_k, logits.size(-1))) if top_k else (logits, None)
    return filter_min_p(filter_top_p(logits / temperature, top_p), min_p), ids


def sample(logits, temperature=1.0, generator=None, **filters):
    """One id a row (B, 1) from logits (B, V). Temperature 0 is greedy: the largest logit, with no randomness."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits, ids = candidates(logits, temperature, **filters)
    drawn = torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1, generator=generator)
    return drawn if ids is None else ids.gather(1, drawn)


def advance(model, idx, cache=None):
    """
    The logits (B, V) of what follows idx (B, T), of which the cache, if there is one, has seen the beginning. Without a
    cache the last block_size ids count. With one, and learned positions, it begins anew with the last half of its size
    whenever it is full: every half size one step costs as much as half a prompt. Rotary positions slide instead.
    """
    if cache is None:
        return model(idx[:, -model.config.block_size:])[0][:, -1]
    new = idx.size(1) - cache.origin - cache.length
    slides = model.config.modern and new == 1
    if cache.length + new > cache.size and not (slides and cache.length > 0):
        cache.begin(idx.size(1) - (cache.size if cache.length == 0 else (cache.size + 1) // 2))
    return model(idx[:, cache.origin + cache.length:], cache=cache)[0][:, -1]


def next_token(model, idx, cache=None, vocab_size=None, repetition_penalty=None, **options):
    """The next id (B, 1) after idx (B, T). Ids from vocab_size on are padding of the model and are never drawn."""
    logits = advance(model, idx, cache)[:, :vocab_size].float()
    if cache is not None and cache.row_padding is not None:
        padding = torch.arange(idx.size(1), device=idx.device) < cache.row_padding[:, None]
        idx = idx.masked_fill(padding, logits.size(1))
    return sample(penalize_repetition(logits, idx, repetition_penalty), **options)


@torch.no_grad()
def stream(model, idx, max_new_tokens, use_cache=True, padding=None, **options):
    """
    Yield the ids (B, 1) that continue idx (B, T), one step at a time. `padding` (B,) int64 is how many ids at the
    beginning of each row are none. Other options as in next_token and sample.
    """
    cache = KVCache(min(model.config.block_size, idx.size(1) + max_new_tokens), padding) if use_cache else None
    for _ in range(max_new_tokens):
        token = next_token(model, idx, cache, **options)
        idx = torch.cat((idx, token), dim=1)
        yield token


def generate(model, idx, max_new_tokens, **options):
    """idx (B, T) with its continuation, (B, T + max_new_tokens)."""
    return torch.cat([idx, *stream(model, idx, max_new_tokens, **options)], dim=1)
