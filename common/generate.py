"""
From logits to ids, as a ladder of small functions: each is composed of the one below. It knows no tokenizer; ids
come in and ids go out. `model` is anything that maps ids (B, T) to (logits of the last position (B, 1, V), None).
"""
import torch


def filter_top_k(logits, top_k):
    """Leave only the top_k largest logits of each row (B, V); ties with the last of them stay. 0 or None is off."""
    if not top_k:
        return logits
    kept, _ = torch.topk(logits, min(top_k, logits.size(-1)))
    return logits.masked_fill(logits < kept[:, [-1]], -float('inf'))


def sample(logits, temperature=1.0, top_k=None, generator=None):
    """One id a row (B, 1) from logits (B, V). Temperature 0 is greedy: the largest logit, with no randomness."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probs = torch.softmax(filter_top_k(logits / temperature, top_k), dim=-1)
    return torch.multinomial(probs, num_samples=1, generator=generator)


def next_token(model, idx, vocab_size=None, **options):
    """The next id (B, 1) after idx (B, T). Ids from vocab_size on are padding of the model and are never drawn."""
    context = idx[:, -model.config.block_size:]
    logits = model(context)[0][:, -1, :vocab_size].float()
    return sample(logits, **options)


@torch.no_grad()
def stream(model, idx, max_new_tokens, **options):
    """Yield the ids (B, 1) that continue idx (B, T), one step at a time. Options as in next_token and sample."""
    for _ in range(max_new_tokens):
        token = next_token(model, idx, **options)
        idx = torch.cat((idx, token), dim=1)
        yield token


def generate(model, idx, max_new_tokens, **options):
    """idx (B, T) with its continuation, (B, T + max_new_tokens)."""
    return torch.cat([idx, *stream(model, idx, max_new_tokens, **options)], dim=1)
