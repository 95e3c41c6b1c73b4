"""The fixed prompts that a run continues at every evaluation: they show what it has learned so far."""
import torch

from common.console import visible
from common.distributed import print0
from common.prompts import encode, read_lines
from common.tokenizer import from_meta


def encode_prompts(meta, sample_prompts):
    """
    The ids of each prompt, a list of lists. They are one string with | between them, or LINES:PATH (also FILE:PATH) of
    a file with one per line; '' means none. An empty prompt among several becomes the id that a new text starts with.
    """
    if not sample_prompts:
        return []
    is_file = sample_prompts.startswith(('FILE:', 'LINES:'))
    texts = read_lines(sample_prompts, 'sample_prompts') if is_file else sample_prompts.split('|')
    tokenizer = from_meta(meta)
    return [ids or [tokenizer.start_id] for _, ids in encode(tokenizer, texts)]


def write(model, prompts, meta, seed, ctx):
    """
    Each of the prompts (ids) continued up to the end of the text, or by 200 tokens, as texts; with the same random
    numbers every time. [] if the model computes numbers that are not finite.
    """
    if not prompts:
        return []
    end_id = from_meta(meta).end_id
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    try:
        with ctx:
            ids = [model.generate(torch.tensor([prompt], device=device), 200, temperature=0.8, top_k=200,
                                  vocab_size=meta['vocab_size'], generator=generator)[0].tolist() for prompt in prompts]
    except ValueError as error:  # the model has diverged, which is for the loss to say
        print0(f'no samples: {error}')
        ids = []
    model.train()
    ends = [row.index(end_id, len(prompt)) if end_id in row[len(prompt):] else len(row)
            for row, prompt in zip(ids, prompts)]
    return decode_all(meta, [row[:end] for row, end in zip(ids, ends)])


def decode_all(meta, ids):
    """The text of each list of ids, as a terminal may show it."""
    tokenizer = from_meta(meta) if ids else None
    return [visible(tokenizer.decode(row)) for row in ids]
