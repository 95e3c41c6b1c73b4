"""The fixed prompts that a run continues at every evaluation: they show what it has learned so far."""
import torch

from common.tokenizer import from_meta


def encode_prompts(meta, prompts):
    """
    The ids of each of the `prompts`, a list of lists. They are one string with | between them, or FILE:PATH of a file
    with one per line; '' means none. An empty prompt among several becomes the id that a new text starts with.
    """
    if not prompts:
        return []
    if prompts.startswith('FILE:'):
        try:
            with open(prompts.removeprefix('FILE:'), encoding='utf-8-sig') as f:
                texts = f.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f'sample_prompts={prompts!r} cannot be read: {error}') from None
    else:
        texts = prompts.split('|')
    tokenizer = from_meta(meta)
    return [tokenizer.encode(text) or [tokenizer.start_id] for text in texts]


def write(model, prompts, meta, seed, ctx):
    """Each of the prompts (ids) continued by 200 tokens, as texts; with the same random numbers every time."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with ctx:
        ids = [model.generate(torch.tensor([prompt], device=device), 200, temperature=0.8, top_k=200,
                              vocab_size=meta['vocab_size'], generator=generator)[0].tolist() for prompt in prompts]
    model.train()
    return decode_all(meta, ids)


def decode_all(meta, ids):
    """The text of each list of ids."""
    tokenizer = from_meta(meta) if ids else None
    return [tokenizer.decode(row) for row in ids]
