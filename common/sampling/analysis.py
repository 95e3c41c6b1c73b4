"""How likely a model finds each token of a text, and what it expects next: numbers, and lines for the terminal."""
import codecs
import math

import torch

from common import console, generate, scoring
from common.console import pad, visible
from common.tokenizer import quoted, token_text, written

# From expected to surprising: the upper limit in bits, and the colour in the terminal (of 256)
SHADES = [(1, 194), (3, 229), (6, 222), (10, 216), (math.inf, 210)]


def next_tokens(logits, tokenizer):
    """
    The ten likeliest ids of logits (V,): a list of {"id", "text", "probability"}, with bytes that are no whole
    character as \\xec in the text. ValueError if a logit is not finite.
    """
    generate.check_finite(logits, logits.dtype)
    probabilities, ids = logits.float().softmax(dim=-1).topk(min(10, len(logits)))
    return [{'id': i, 'text': token_text(tokenizer, i), 'probability': p}
            for i, p in zip(ids.tolist(), probabilities.tolist())]


def pieces(tokenizer, tokens):
    """
    The tokens as the shortest pieces of whole characters, a list of {"text", "tokens", "surprisal"}: how many tokens a
    piece has, and the sum of their surprisals in bits.
    """
    decoder, found, text, count, surprisal = codecs.getincrementaldecoder('utf-8')('backslashreplace'), [], '', 0, 0.0
    for token in tokens:
        text += decoder.decode(tokenizer.bytes_of(token['id']))
        count, surprisal = count + 1, surprisal + token['surprisal']
        if not decoder.getstate()[0]:  # no character is left half
            found.append({'text': text, 'tokens': count, 'surprisal': surprisal})
            text, count, surprisal = '', 0, 0.0
    return found


@torch.no_grad()
def analyze(model, tokenizer, text):
    """
    How the model sees a text that nothing precedes: {"text", "tokens", "pieces", "perplexity", "accuracy",
    "bits_per_token", "bits_per_character", "bits_per_byte", "context", "next"}. "tokens" is a list of {"id", "text",
    "probability", "rank", "surprisal"}, the last in bits, with bytes that are no whole character as \\xec in the text;
    "pieces" is what pieces() makes of them. "accuracy" is the share of rank 1, "context" what the model sees, in
    tokens. <|endoftext|> counts as a token, not as characters or bytes; with nothing else those figures are None.
    ValueError for an empty text, or if the model computes numbers that are not finite.
    """
    ids = torch.tensor([tokenizer.start_id] + tokenizer.encode(text), device=next(model.parameters()).device)
    if len(ids) == 1:
        raise ValueError('there is no text to analyze')
    logprobs, ranks = scoring.score(model, ids, tokenizer.vocab_size)
    bits = (-logprobs / math.log(2)).tolist()
    tokens = [{'id': i, 'text': token_text(tokenizer, i), 'probability': p, 'rank': rank, 'surprisal': b}
              for i, p, rank, b in zip(ids[1:].tolist(), logprobs.exp().tolist(), ranks.tolist(), bits)]
    context = model.config.block_size
    logits = model(ids[None, -context:])[0][0, -1, :tokenizer.vocab_size]
    counted = written(tokenizer, text)
    return {'text': text, 'tokens': tokens, 'pieces': pieces(tokenizer, tokens),
            'perplexity': console.perplexity(-logprobs.mean().item()),
            'accuracy': (ranks == 1).float().mean().item(), 'bits_per_token': sum(bits) / len(bits),
            'bits_per_character': sum(bits) / len(counted) if counted else None,
            'bits_per_byte': sum(bits) / len(counted.encode()) if counted else None,
            'context': context, 'next': next_tokens(logits, tokenizer)}


def shade(surprisal):
    """The colour in the terminal for a surprisal in bits."""
    return next(colour for limit, colour in SHADES if surprisal <= limit)


def bar(probability, width=30):
    """A bar of up to `width` characters, drawn in eighths of a character."""
    eighths = round(probability * width * 8)
    return '█' * (eighths // 8) + ' ▏▎▍▌▋▊▉'[eighths % 8].strip()


def table(candidates):
    """The result of next_tokens() as lines of a table."""
    return [f'{row["probability"]:7.2%}  {pad(quoted(row["text"]), 16)} {bar(row["probability"])}'
            for row in candidates]


def summary(result):
    """The figures of the whole text, in a sentence or two."""
    bits = [f'{result[f"bits_per_{unit}"]:.2f}{" bits" * (unit == "token")} a {unit}'
            for unit in ('token', 'character', 'byte') if result[f'bits_per_{unit}'] is not None]
    context = result['context']
    note = (f'. From token {context + 1:,} on the model sees {(context + 1) // 2:,} to {context:,} tokens before each '
            'one, which slightly overestimates the perplexity' if len(result['tokens']) > context else '')
    return (f'Perplexity {result["perplexity"]:.2f} over {len(result["tokens"]):,} tokens: {", ".join(bits)}; accuracy '
            f'{result["accuracy"]:.1%}{note}')


def report(result, colour):
    """The result of analyze() as lines for the terminal."""
    def paint(shown, text):
        return f'\033[30;48;5;{shade(shown["surprisal"])}m{text}\033[0m' if colour else text

    if colour:
        yield ''.join(paint(piece, visible(piece['text'])).replace('\n', '\033[0m\n')
                      for piece in result['pieces']) + '\n'
    yield 'token             probability    rank  surprisal in bits'
    for token in result['tokens']:
        name = quoted(token['text'])
        yield (f'{paint(token, name)}{pad(name, 17).removeprefix(name)} {token["probability"]:11.3%} '
               f'{token["rank"]:7} {token["surprisal"]:7.2f} {bar(min(token["surprisal"] / 20, 1.0))}')
    yield '\n' + summary(result) + '\n\nwhat comes next:'
    yield from table(result['next'])
