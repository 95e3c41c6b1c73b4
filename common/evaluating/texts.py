"""The loss of a model on a text, or on the validation data of a dataset, as figures that can be compared."""
import math

import numpy as np
import torch

from common import console, dataset, prompts, scoring
from common.tokenizer import END_OF_TEXT, check_same, from_meta, written


def score_text(model, tokenizer, text, about, context=None):
    """
    (line, result) of a text, in windows as scoring.score() has them: by default each token is predicted from at least
    half a context, once there are so many before it. Decomposed characters are taken in NFC where that takes fewer
    tokens, as in a prompt. ValueError if it is empty, or if the vocabulary lacks a character.
    """
    taken, encoded = prompts.encode_one(tokenizer, text)
    if taken != text:
        console.say(f'the text has {prompts.COMPOSED}')
    ids = torch.tensor([tokenizer.start_id] + encoded, device=next(model.parameters()).device)
    if len(ids) == 1:
        raise ValueError('there is no text to score')
    logprobs, ranks = scoring.score(model, ids, tokenizer.vocab_size, context)
    counted = written(tokenizer, taken)
    return summary(logprobs, ranks, len(counted.encode()) or None, {**about, 'characters': len(counted) or None})


def own_dataset(settings, source):
    """The name of the dataset that a run trained on. ValueError if its settings do not say so."""
    name = settings.get('dataset') if isinstance(settings, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f'{source} does not say what it was trained on; say what to score: --text=FILE, '
                         '--dataset=NAME or --tasks=hellaswag')
    return name


def score_dataset(model, tokenizer, meta, folder, fraction, about):
    """
    (line, result) of the validation data in a folder, read as train.py does it with eval_iters=0: in windows that do
    not overlap, and what a mask excludes does not count. FileNotFoundError or ValueError if it is not there, or if it
    has a mask or ids that are no text, but another vocabulary than the model.
    """
    theirs, about = dataset.read_meta(folder), {**about, 'dataset': dataset.name_of(folder)}
    dataset.check(folder, theirs, 1)
    tokens = dataset.open_tokens(folder, 'val', theirs)
    tokens, mask = tokens[:max(2, math.ceil(fraction * len(tokens)))], dataset.open_mask(folder, 'val')
    try:
        check_same(theirs, meta, model.config.vocab_size)
    except ValueError:
        if 'ids' in (theirs['tokenizer'], meta['tokenizer']):
            raise ValueError(f'{about["dataset"]} has {theirs["vocab_size"]:,} ids ({theirs["tokenizer"]}), the model '
                             f'{meta["vocab_size"]:,} ({meta["tokenizer"]}): ids that are no text mean nothing in '
                             'another vocabulary') from None
        if mask is not None:
            raise ValueError(f'{about["dataset"]} is in another vocabulary ({theirs["tokenizer"]}), which its mask of '
                             'what counts is for: prepare it once more, in the vocabulary of the model') from None
        print(f'{about["dataset"]} is in another vocabulary ({theirs["tokenizer"]}): decoded, and encoded again')
        text = from_meta(theirs).decode(tokens.tolist())
        text = text.replace(END_OF_TEXT, '\n') if tokenizer.end_id is None else text
        return score_text(model, tokenizer, text, about, context=1)
    ids = torch.from_numpy(tokens.astype(np.int64)).to(next(model.parameters()).device)
    logprobs, ranks = scoring.score(model, ids, tokenizer.vocab_size, context=1)
    if mask is not None:
        counted = torch.from_numpy(np.array(mask[1:len(tokens)])).to(ids.device)
        logprobs, ranks = logprobs[counted], ranks[counted]
        if not len(ranks):
            raise ValueError(f'nothing counts in the first {len(tokens):,} tokens of {about["dataset"]}; try a larger '
                             '--fraction')
    each = dataset.bytes_per_token(theirs, 'val')  # on average
    return summary(logprobs, ranks, each and each * len(ranks), about)


def summary(logprobs, ranks, bytes_scored, about):
    """(line, result) of log-probabilities and ranks of tokens that stand for so many bytes, or None if not known."""
    loss = -logprobs.cpu().double().mean().item()  # MPS has no float64
    result = {**about, 'tokens': len(ranks), 'bytes': bytes_scored and round(bytes_scored), 'loss': loss,
              'perplexity': console.perplexity(loss), 'accuracy': (ranks == 1).float().mean().item(),
              'bits_per_byte': console.bits_per_byte(loss, bytes_scored and bytes_scored / len(ranks))}
    bits = 'bits per byte not known' if bytes_scored is None else f'{result["bits_per_byte"]:.4f} bits per byte'
    return (f'{about.get("text") or about["dataset"]}: {bits}, loss {loss:.4f}, perplexity {result["perplexity"]:.2f}, '
            f'accuracy {result["accuracy"]:.1%}; {len(ranks):,} tokens', result)
