"""
How likely a model finds given ids: whole texts, and endings of a context, in batches. It knows no tokenizer and no
benchmark. `model` is a GPT, or anything with its config that is called in the same way.
"""
import itertools

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from common import generate

MOST_LOGITS = 2**26  # in a batch of more than one row: 0.27 GB in float32, as much again for the log-probabilities
MOST_TOKENS = 2**11  # in a batch; more at once need more padding
CACHE_BYTES = 1e9    # for the keys and values of a batch


def tokens_at_once(model):
    """Whose logits are computed in one batch; of a text at least those of a window."""
    return max(1, min(MOST_TOKENS, MOST_LOGITS // model.config.vocab_size))


def look_up(logits, ids):
    """The log-probabilities of ids (...) by logits (..., V), (..., 1), and those of all ids, (..., V)."""
    everything = logits.float().log_softmax(dim=-1)
    return everything.gather(-1, ids[..., None]), everything


def is_written(everything, ids):
    """Whether a model that always takes the likeliest id would write ids (...), by the scores of all (..., V)."""
    return everything.argmax(dim=-1) == ids


def ranks(everything, ids):
    """The ranks of ids (...) by the scores of all (..., V); that of the likeliest is 1."""
    likelier = (everything > everything.gather(-1, ids[..., None])).sum(dim=-1)
    # of equally likely ids the one that is written has rank 1: in 16 bits there are many
    return torch.where(is_written(everything, ids), 0, likelier.clamp(min=1)) + 1


@torch.no_grad()
def score(model, ids, vocab_size=None, context=None):
    """
    How likely the model finds each of ids (T,) after the first: (log-probabilities, ranks), both (T - 1,). A text that
    is longer than the model's context is read in windows. In each but the first, `context` ids stand before those that
    are scored: by default half of what the model sees; with 1 the windows do not overlap. ValueError if a
    log-probability is not finite.
    """
    T, size = len(ids), model.config.block_size
    context = (size + 1) // 2 if context is None else context
    windows = [(0, 1)]  # where each begins, and the first id that it scores
    while windows[-1][0] + size + 1 < T:
        following = windows[-1][0] + size + 1
        windows.append((following - context, following))
    parts, rows = [], max(1, tokens_at_once(model) // size)
    with tqdm(total=T, unit='tokens', disable=None if T > 10 * size else True, leave=False) as progress:
        # all but the first and the last have the same shape, and go together
        shapes = itertools.groupby(windows, lambda window: (min(size, T - 1 - window[0]), window[1] - window[0] - 1))
        for (length, unscored), alike in shapes:
            begins = [begin for begin, _ in alike]
            for some in (begins[i:i + rows] for i in range(0, len(begins), rows)):
                x, y = (torch.stack([ids[begin + shift:begin + shift + length] for begin in some]) for shift in (0, 1))
                logits = model(x, y)[0][:, unscored:, :vocab_size]
                logprobs, everything = look_up(logits, y[:, unscored:])
                generate.check_finite(logprobs, logits.dtype)
                parts.append((logprobs.flatten(), ranks(everything, y[:, unscored:]).flatten()))
                progress.update(logprobs.numel())
    return tuple(torch.cat(columns) for columns in zip(*parts))


def fits(model, context, endings):
    """Whether the model sees all of a context while it reads any of the endings."""
    return len(context) + max(map(len, endings)) - 1 <= model.config.block_size


def pieces(context, ending, size):
    """
    Yields (context, ending), ids, to be scored one by one in place of an ending that does not fit behind its context:
    the context loses its beginning, as in EleutherAI's lm_eval, and an ending longer than what the model sees, `size`
    ids, is cut up so that half of that stands before each piece.
    """
    step, ids = size if len(ending) <= size else (size + 1) // 2, context + ending
    for begin in range(len(context), len(ids), step):
        piece = ids[begin:begin + step]
        yield ids[max(0, begin + len(piece) - size - 1):begin], piece


def into_batches(model, jobs):
    """
    Cut jobs, [(key, context, endings)] sorted by the lengths of their contexts, the longest first, into batches whose
    contexts are computed at once.
    """
    batch, ending = [], 0
    for job in jobs:
        _, context, endings = job
        first, ending = len(batch[0][1] if batch else context), max(ending, *map(len, endings))
        rows, length = len(batch) + 1, first + ending - 1
        too_long = length > model.config.block_size  # there is no position for what pads a short ending
        too_much = rows * length * bytes_per_token(model) > CACHE_BYTES
        if batch and (too_long or too_much or rows * first > MOST_TOKENS):
            yield batch
            batch, ending = [], max(map(len, endings))
        batch.append(job)
    if batch:
        yield batch


def bytes_per_token(model):
    """Of keys and values in float32."""
    return 2 * model.config.n_layer * model.config.n_embd * 4


def score_batch(model, contexts, endings, vocab_size):
    """
    Of each ending its log-probability after its context, and whether the model would write it: a list in their order.
    contexts: lists of ids; endings: for each context a list of lists of ids. A context is computed once.
    """
    device = next(model.parameters()).device
    longest, most = max(map(len, contexts)), max(len(ending) for some in endings for ending in some)
    padding = torch.tensor([longest - len(context) for context in contexts], device=device)
    x = torch.tensor([[0] * (longest - len(context)) + context for context in contexts], device=device)
    cache = generate.KVCache(longest + most - 1, padding if padding.any() else None)
    first = generate.feed(model, x, cache)[:, :vocab_size]  # (contexts, V): they lead to the first id of each ending
    flat = [(i, ending) for i, some in enumerate(endings) for ending in some]
    left, found = sorted(range(len(flat)), key=lambda row: len(flat[row][1])), [None] * len(flat)
    while left:  # the longest endings first, and such of about one length together
        length = len(flat[left[-1]][1])
        in_cache = int(CACHE_BYTES / (cache.size * bytes_per_token(model)))
        count = max(1, min(tokens_at_once(model) // length, in_cache))
        left, some = left[:-count], left[-count:]
        rows = torch.tensor([flat[row][0] for row in some], device=device)
        scores = score_rows(model, first[rows], cache.expand(rows), [flat[row][1] for row in some], vocab_size)
        for row, score in zip(some, scores):
            found[row] = score
    return found


def score_rows(model, first, cache, endings, vocab_size):
    """score_batch() of an ending (a list of ids) for each row of a cache; first: the logits before them (rows, V)."""
    y = pad_sequence([torch.tensor(ending) for ending in endings], batch_first=True, padding_value=-1).to(first.device)
    counted, y = y >= 0, y.clamp(min=0)  # (rows, longest ending)
    logits = [first[:, None]]
    if y.size(1) > 1:
        logits.append(generate.feed(model, y[:, :-1], cache, every=True)[..., :vocab_size])
    found = []
    for part, ids in zip(logits, y.split([1, y.size(1) - 1], dim=1)):
        logprobs, everything = look_up(part, ids)
        found.append((logprobs[..., 0], is_written(everything, ids)))
    logprobs, written = (torch.cat(columns, dim=1) for columns in zip(*found))
    logprobs = torch.where(counted, logprobs, 0.0).sum(dim=1)
    generate.check_finite(logprobs, first.dtype)
    return list(zip(logprobs.tolist(), (written | ~counted).all(dim=1).tolist()))


@torch.no_grad()
def score_endings(model, groups, vocab_size=None):
    """
    How likely a model finds each of several endings of a context. groups: [(context, endings)], a list of ids and a
    list of such lists, none of them empty. Yields the number of a group and a list of (log-probability, whether the
    model would write it), one for each ending, as groups are done: those with the longest contexts first. Of what is
    too long for the model pieces() are scored. ValueError if a log-probability is not finite.
    """
    size, jobs, scores, left = model.config.block_size, [], {}, {}
    for number, (context, endings) in enumerate(groups):
        if fits(model, context, endings):
            parts = [((number, range(len(endings))), context, endings)]
        else:
            parts = [((number, [i]), before, [piece]) for i, ending in enumerate(endings)
                     for before, piece in pieces(context, ending, size)]
        jobs += parts
        scores[number], left[number] = [(0.0, True)] * len(endings), len(parts)
    jobs.sort(key=lambda job: -len(job[1]))
    for batch in into_batches(model, jobs):
        keys, contexts, endings = zip(*batch)
        results = iter(score_batch(model, contexts, endings, vocab_size))
        for number, places in keys:
            for i, (logprob, greedy) in zip(places, results):
                before, so_far = scores[number][i]
                scores[number][i] = before + logprob, so_far and greedy
            left[number] -= 1
            if not left[number]:
                yield number, scores.pop(number)
