"""
What goes on in a model while it reads a text: what it expected at each token, where its heads look, what it would have
said after each layer, and what each part adds. All is read off the model itself, with hooks. It knows no tokenizer and
no page. `model` is a GPT in float32.
"""
import contextlib
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common.scoring import ranks

LARGEST = 129    # positions that are looked at: the start of a text and 128 tokens
SHOWN = 10       # likeliest tokens, and nearest neighbours
STORED = 200     # logits of a position; top_k can be any number up to that
LENS_SHOWN = 5   # likeliest tokens after each layer
MAPPED = 512     # ids of a vocabulary whose map is drawn whole
REPEATED = 32    # random tokens that come twice, for head_scores()
SCORED = 8       # the first position that it scores: before it a head that looks everywhere alike gives much to each
TEMPERATURES = [i / 10 for i in range(1, 21)]
TOP_PS = [i / 10 for i in range(1, 10)] + [0.95, 1.0]
TOKENS_AT_ONCE = 2**11  # while heads are switched off
LOGITS_AT_ONCE = 2**23  # 34 MB: a tenth faster than what does not fit into a cache


@dataclass
class Trace:
    """What went through the blocks as the model read ids (T,); C: n_embd."""
    residual: torch.Tensor   # (n_layer + 1, T, C): the residual stream in front of each block, and behind the last
    attention: torch.Tensor  # (n_layer, T, C): what the attention of each block added to it
    mlp: torch.Tensor        # (n_layer, T, C): what its MLP added
    heads: torch.Tensor      # (n_layer, T, C): the output of the heads, side by side, before they are mixed
    weights: torch.Tensor    # (n_layer, n_head, T, T): what each position takes from each
    rope: tuple | None       # cos and sin (T, head_dim / 2) of a modern model


@torch.no_grad()
def look(model, ids, vocab_size, name=''):
    """
    All figures for ids (T,), of which the first starts a text, as {name: tensor on the CPU}. Position i reads id i and
    predicts id i + 1. n: the positions that are looked at; m: those whose next id is known, n or n - 1.

    top_ids, top_logits      (n, 10), (n, 200): the likeliest ids; logits, relative to the largest at the position
    own_logits, own_ranks    (m,): of the id that comes, likewise; rank 1 is the likeliest
    kept, normalizers        (n, 20, 11): what nuclei() returns
    attention                (n_layer, n_head, n, n)
    head_scores              (n_layer, n_head, 4): what head_scores() returns
    lens_ids, lens_probs     (n_layer + 1, n, 5): what the model would say in front of each block, and at its end
    lens_own, lens_ranks     (n_layer + 1, m): probability and rank of the id that comes
    parts, head_parts        (2 n_layer + 2, m), (n_layer, n_head, m): what attribute() returns
    ablation                 (n_layer, n_head, m): what ablate() returns
    near_ids, near_cosines   (distinct ids of the text, ascending, 10): what neighbours() returns
    map_ids, map_places      (k,), (k, 2): what draw_map() returns
    positions                what picture_positions() returns
    """
    n = min(len(ids), model.config.block_size, LARGEST)
    targets = ids[1:n + 1]
    trace = follow(model, ids[:n])
    logits = logits_of(model, trace.residual[-1], vocab_size)
    top = logits.topk(min(STORED, vocab_size))
    largest = top.values[:, :1]
    found = {'top_ids': top.indices[:, :SHOWN], 'top_logits': top.values - largest,
             'own_logits': (logits - largest)[:len(targets)].gather(1, targets[:, None])[:, 0],
             'own_ranks': ranks(logits[:len(targets)], targets)}
    found['kept'], found['normalizers'] = nuclei((logits - largest).cpu())
    found |= lens(model, trace, targets, vocab_size)
    found |= attribute(model, trace, targets, vocab_size)
    found |= {'attention': trace.weights, 'head_scores': head_scores(model, trace.weights, vocab_size),
              'ablation': ablate(model, trace, targets, vocab_size, name)}
    distinct, embeddings = ids[:n + 1].unique().cpu(), model.transformer.wte.weight[:vocab_size].cpu()
    found['near_ids'], found['near_cosines'] = neighbours(embeddings, distinct)
    found['map_ids'] = torch.arange(vocab_size) if vocab_size <= MAPPED else distinct
    found['map_places'] = draw_map(embeddings[found['map_ids']])
    found['positions'] = picture_positions(model, trace)
    return {key: value.cpu() for key, value in found.items()}


@contextlib.contextmanager
def hooked(*handles):
    """Remove hooks again at the end of a block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def follow(model, ids):
    """The Trace of a model that reads ids (T,)."""
    blocks, T, C = model.transformer.h, len(ids), model.config.n_embd
    seen = {key: torch.zeros(len(blocks) + (key == 'residual'), T, C, device=ids.device)
            for key in ('residual', 'attention', 'mlp', 'heads')}
    ropes, handles = [], []

    def keep(key, layer, tensor):
        seen[key][layer] = tensor[0]

    for i, block in enumerate(blocks):
        handles += [
            block.register_forward_pre_hook(lambda module, args, i=i: keep('residual', i, args[0])),
            block.register_forward_pre_hook(lambda module, args: ropes.append(args[1])),
            block.attn.register_forward_hook(lambda module, args, output, i=i: keep('attention', i, output)),
            block.attn.c_proj.register_forward_pre_hook(lambda module, args, i=i: keep('heads', i, args[0])),
            block.mlp.register_forward_hook(lambda module, args, output, i=i: keep('mlp', i, output)),
            block.register_forward_hook(lambda module, args, output, i=i: keep('residual', i + 1, output))]
    with hooked(*handles):
        model(ids[None])
    weights = [attention_weights(block.attn, block.ln_1(x[None]), ropes[0])
               for block, x in zip(blocks, seen['residual'])]
    return Trace(**seen, weights=torch.stack(weights), rope=ropes[0])


def attention_weights(attn, x, rope):
    """
    What each position takes from each, (n_head, T, T), by the attention itself, whatever kind it is: a head whose value
    at one position is a unit vector, and 0 at all others, returns the weights of that position.
    """
    T, C = x.shape[1:]
    size = C // attn.n_head  # so many positions at once
    weights = x.new_zeros(attn.n_head, T, T)

    def keep(module, args):
        weights[:, :, begin:begin + size] = args[0].view(T, attn.n_head, size)[..., :count].transpose(0, 1)

    for begin in range(0, T, size):
        count = min(size, T - begin)
        values = x.new_zeros(T, size)
        values[begin:begin + count, :count] = torch.eye(count, device=x.device)
        values = values.repeat(1, attn.n_head)[None]
        with hooked(attn.c_attn.register_forward_hook(lambda module, args, output: torch.cat(
                        (output[..., :2 * C], values), dim=-1)),
                    attn.c_proj.register_forward_pre_hook(keep)):
            attn(x, rope)
    return weights


def logits_of(model, x, vocab_size):
    """Logits (..., vocab_size) of all positions of a residual stream (..., C), as if it were that behind the blocks."""
    flat = x.reshape(-1, 1, x.size(-1))
    return model.head(flat, None)[0][:, 0, :vocab_size].view(*x.shape[:-1], vocab_size)


def losses(model, x, targets, vocab_size):
    """The loss in nats at each position of residual streams x (B, m, C), (B, m)."""
    B, m = x.shape[:2]
    count = max(1, LOGITS_AT_ONCE // vocab_size)
    rows = zip(x.flatten(0, 1).split(count), targets.repeat(B).split(count))
    return torch.cat([F.cross_entropy(logits_of(model, some, vocab_size), ids, reduction='none')
                      for some, ids in rows]).view(B, m)


def nuclei(logits):
    """
    For logits (n, V), of which the largest is 0, and each of TEMPERATURES and TOP_PS, without top_k: how many of the
    likeliest ids top_p leaves, and the logarithm of the sum of their exp(logit / temperature), both (n, 20, 11). An id
    that is left has the probability exp(logit / temperature - normalizer), which a page can compute without knowing all
    logits.
    """
    rows, temperatures = [], torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None]
    left_out = 1 - torch.tensor(TOP_PS, dtype=torch.float64)  # at most this share, of the least likely ids
    for row in logits:
        sums = (row.double().sort().values / temperatures).exp_().cumsum(dim=1)  # (20, V), the least likely first
        out = torch.searchsorted(sums, sums[:, -1:] * left_out, right=True).clamp(max=len(row) - 1)  # (20, 11)
        mass = sums[:, -1:] - F.pad(sums, (1, 0)).gather(1, out)
        rows.append((len(row) - out, mass.log().float()))
    return tuple(map(torch.stack, zip(*rows)))


def lens(model, trace, targets, vocab_size):
    """
    What the model would say if it ended in front of each block, and what it says at its end: the logit lens, by
    nostalgebraist 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
    """
    rows = []
    for x in trace.residual:  # one layer at a time, as logits are large
        logits = logits_of(model, x, vocab_size)
        probabilities = logits.softmax(dim=-1)
        top = probabilities.topk(min(LENS_SHOWN, vocab_size))
        own = probabilities[:len(targets)].gather(1, targets[:, None])[:, 0]
        rows.append((top.indices, top.values, own, ranks(logits[:len(targets)], targets)))
    return dict(zip(('lens_ids', 'lens_probs', 'lens_own', 'lens_ranks'), map(torch.stack, zip(*rows))))


def attribute(model, trace, targets, vocab_size):
    """
    The logit of the id that comes, relative to the mean of all logits, as a sum of what each part of the model adds to
    it, with the last norm's mean and deviation as they are: `parts` (2 n_layer + 2, m), the embedding, attention and
    MLP of each block in turn, and the bias of the last norm. `head_parts` (n_layer, n_head, m): what each head adds as
    a part of its attention. In front of a softcap. Elhage et al. 2021,
    https://transformer-circuits.pub/2021/framework/index.html
    """
    last, c, m = model.transformer.ln_f, model.config, len(targets)
    output = model.lm_head.weight[:vocab_size]
    wanted = output[targets] - output.mean(dim=0)  # (m, C)
    final = trace.residual[-1, :m]
    deviation = (final.var(dim=-1, correction=0) + last.eps).sqrt()

    def adds(x):  # (..., m, C)
        x = (x - x.mean(dim=-1, keepdim=True)) / deviation[:, None]
        return ((x if last.weight is None else x * last.weight) * wanted).sum(dim=-1)

    blocks = torch.stack((trace.attention, trace.mlp), dim=1).flatten(0, 1)  # attention and MLP in turn
    bias = wanted.new_zeros(m) if last.bias is None else wanted @ last.bias
    parts = torch.cat((adds(trace.residual[:1, :m]), adds(blocks[:, :m]), bias[None]))
    by_head = [adds(torch.einsum('thi,chi->htc', z[:m].view(m, c.n_head, -1),
                                 block.attn.c_proj.weight.view(c.n_embd, c.n_head, -1)))
               for z, block in zip(trace.heads, model.transformer.h)]
    return {'parts': parts, 'head_parts': torch.stack(by_head)}


def ablate(model, trace, targets, vocab_size, name=''):
    """
    How many nats the loss at each position grows if the output of a head is set to 0: (n_layer, n_head, m). Blocks
    before the head are not computed again.
    """
    c, m, blocks = model.config, len(targets), model.transformer.h
    before = losses(model, trace.residual[-1:, :m], targets, vocab_size)
    size, found = c.n_embd // c.n_head, []
    with tqdm(total=c.n_layer * c.n_head, desc=f'{name}: each head off', unit='heads', delay=1, disable=None,
              leave=False) as progress:
        for i, block in enumerate(blocks):
            for heads in torch.arange(c.n_head).split(max(1, TOKENS_AT_ONCE // trace.residual.size(1))):
                on = torch.ones(len(heads), 1, c.n_embd, device=targets.device)
                for row, head in enumerate(heads):
                    on[row, :, head * size:(head + 1) * size] = 0
                with hooked(block.attn.c_proj.register_forward_pre_hook(lambda module, args: args[0] * on)):
                    x = block(trace.residual[i].expand(len(heads), -1, -1), trace.rope)
                for later in blocks[i + 1:]:
                    x = later(x, trace.rope)
                found.append(losses(model, x[:, :m], targets, vocab_size) - before)
                progress.update(len(heads))
    return torch.cat(found).view(c.n_layer, c.n_head, m)


def head_scores(model, weights, vocab_size):
    """
    What each head does, (n_layer, n_head, 4), as the mean weight that it gives to: the previous token, and the first
    one, by the `weights` (n_layer, n_head, n, n) of a text; the same token earlier, and what followed it then, with
    random tokens that come twice, as in a text both may be chance. The last kind is an induction head: Olsson et al.
    2022, https://arxiv.org/abs/2209.11895. 0 where a text or the context is too short to tell.
    """
    n, count = weights.size(-1), min(REPEATED, model.config.block_size // 2, vocab_size)
    scores, device = weights.new_zeros(*weights.shape[:2], 4), weights.device
    if n > SCORED:
        at = torch.arange(SCORED, n, device=device)
        scores[..., 0], scores[..., 1] = weights[..., at, at - 1].mean(dim=-1), weights[..., at, 0].mean(dim=-1)
    if count > 2:
        ids = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))[:count].repeat(2).to(device)
        weights, at = follow(model, ids).weights, torch.arange(count + 1, 2 * count, device=device)
        scores[..., 2] = weights[..., at, at - count].mean(dim=-1)
        scores[..., 3] = weights[..., at, at - count + 1].mean(dim=-1)
    return scores


def neighbours(embeddings, ids):
    """The ids with the most similar embeddings (V, C) to each of ids (k,), and their cosines, (k, at most 10)."""
    directions = F.normalize(embeddings, dim=1)
    cosines = directions[ids] @ directions.T
    cosines.scatter_(1, ids[:, None], -2)  # not itself
    top = cosines.topk(min(SHOWN, len(embeddings) - 1))
    return top.indices, top.values


def draw_map(embeddings):
    """The directions of embeddings (k, C) along their two principal components, (k, 2)."""
    directions = F.normalize(embeddings, dim=1)
    directions = directions - directions.mean(dim=0)
    components = torch.linalg.svd(directions, full_matrices=False).Vh[:2]
    places = directions @ components.T
    return F.pad(places, (0, 2 - places.size(1)))


def picture_positions(model, trace):
    """
    How a model tells positions apart. A classic one: cosines between its position embeddings, of at most 128 positions
    that are spread over the context, (k, k). A modern one: cosines of the angles by which RoPE rotates the pairs of
    channels at each position of the text, (n, head_dim / 2).
    """
    if model.config.modern:
        return trace.rope[0]
    embeddings = model.transformer.wpe.weight
    spread = torch.linspace(0, len(embeddings) - 1, min(len(embeddings), LARGEST - 1), device=embeddings.device)
    directions = F.normalize(embeddings[spread.long()], dim=1)
    return directions @ directions.T
