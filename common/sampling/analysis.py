"""How likely a model finds each token of a text, and what it expects next: numbers, lines for the terminal, a page."""
import html
import math

import torch
from tqdm import tqdm

from common import console, generate
from common.tokenizer import TextStream

# From expected to surprising: the upper limit in bits, the colour in the terminal (of 256), the colour on the page
SHADES = [(1, 194, '#d9f2d9'), (3, 229, '#fdf6c4'), (6, 222, '#fbdc9a'), (10, 216, '#f7b58a'),
          (math.inf, 210, '#ee8a80')]


@torch.no_grad()
def score(model, ids, vocab_size=None):
    """
    How likely the model finds each of ids (T,) after the first: (log-probabilities, ranks), both (T - 1,). ValueError
    if a log-probability is not finite.
    """
    T, block_size = len(ids), model.config.block_size
    logprobs, ranks, done = [], [], 1  # done: how many of ids are scored; the first is given
    with tqdm(total=T, unit='tokens', disable=None if T > 10 * block_size else True, leave=False) as progress:
        while done < T:
            begin = 0 if done == 1 else done - (block_size + 1) // 2  # half a context before the next one to score
            x, y = ids[begin:begin + block_size], ids[begin + 1:begin + block_size + 1]
            logits = model(x[None, :len(y)], y[None])[0][0, done - 1 - begin:, :vocab_size]
            logits, dtype = logits.float(), logits.dtype
            chosen = logits.gather(1, y[done - 1 - begin:, None])
            logprobs.append((chosen - logits.logsumexp(dim=-1, keepdim=True))[:, 0])
            ranks.append((logits > chosen).sum(dim=-1) + 1)
            done += len(logits)
            progress.update(len(logits))
    logprobs = torch.cat(logprobs)
    generate.check_finite(logprobs, dtype)
    return logprobs, torch.cat(ranks)


def next_tokens(logits, tokenizer):
    """
    The ten likeliest ids of logits (V,): a list of {"id", "text", "probability"}. ValueError if a logit is not finite.
    """
    generate.check_finite(logits, logits.dtype)
    probabilities, ids = logits.float().softmax(dim=-1).topk(min(10, len(logits)))
    return [{'id': i, 'text': tokenizer.decode([i]), 'probability': p}
            for i, p in zip(ids.tolist(), probabilities.tolist())]


@torch.no_grad()
def analyze(model, tokenizer, text):
    """
    How the model sees a text that nothing precedes: {"text", "tokens", "perplexity", "bits_per_token",
    "bits_per_character", "next"}. "tokens" is a list of {"id", "text", "probability", "rank", "surprisal"}, the last in
    bits; a character of several tokens is the text of the last of them. ValueError for an empty text, or if the model
    computes numbers that are not finite.
    """
    ids = torch.tensor([tokenizer.start_id] + tokenizer.encode(text), device=next(model.parameters()).device)
    if len(ids) == 1:
        raise ValueError('there is no text to analyze')
    logprobs, ranks = score(model, ids, tokenizer.vocab_size)
    bits = (-logprobs / math.log(2)).tolist()
    pieces = TextStream(tokenizer)
    tokens = [{'id': i, 'text': pieces.push(i) if i != tokenizer.end_id else tokenizer.decode([i]),
               'probability': p, 'rank': rank, 'surprisal': b}
              for i, p, rank, b in zip(ids[1:].tolist(), logprobs.exp().tolist(), ranks.tolist(), bits)]
    logits = model(ids[None, -model.config.block_size:])[0][0, -1, :tokenizer.vocab_size]
    return {'text': text, 'tokens': tokens, 'perplexity': console.perplexity(-logprobs.mean().item()),
            'bits_per_token': sum(bits) / len(bits), 'bits_per_character': sum(bits) / len(text),
            'next': next_tokens(logits, tokenizer)}


def shade(surprisal):
    """(colour in the terminal, colour on the page) for a surprisal in bits."""
    return next(colours for limit, *colours in SHADES if surprisal <= limit)


def bar(probability, width=30):
    """A bar of up to `width` characters, drawn in eighths of a character."""
    eighths = round(probability * width * 8)
    return '█' * (eighths // 8) + ' ▏▎▍▌▋▊▉'[eighths % 8].strip()


def table(candidates):
    """The result of next_tokens() as lines of a table."""
    return [f'{row["probability"]:7.2%}  {row["text"]!r:<16} {bar(row["probability"])}' for row in candidates]


def summary(result):
    """One line about the whole text."""
    return (f'Perplexity {result["perplexity"]:.2f} over {len(result["tokens"])} tokens: '
            f'{result["bits_per_token"]:.2f} bits a token, {result["bits_per_character"]:.2f} a character')


def report(result, colour):
    """The result of analyze() as lines for the terminal."""
    def paint(token, text):
        return f'\033[30;48;5;{shade(token["surprisal"])[0]}m{text}\033[0m' if colour else text

    if colour:
        yield ''.join(paint(token, token['text']).replace('\n', '\033[0m\n') for token in result['tokens']) + '\n'
    yield 'token             probability    rank  surprisal in bits'
    for token in result['tokens']:
        name = repr(token['text'] or f'id {token["id"]}')  # the first bytes of a character have no text
        yield (f'{paint(token, name)}{" " * max(1, 18 - len(name))}{token["probability"]:11.3%} {token["rank"]:7} '
               f'{token["surprisal"]:7.2f} {bar(min(token["surprisal"] / 20, 1.0))}')
    yield '\n' + summary(result) + '\n\nwhat comes next:'
    yield from table(result['next'])


PAGE = '''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222;
       background: #fff }}
pre {{ white-space: pre-wrap; font-family: ui-monospace, monospace }}
td {{ padding-right: 1em }}
td div {{ background: #6a9fd8; height: 1em }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}. Surprisal in bits: {legend}. Hover over a token for details.</p>
<pre>{text}</pre>
<h2>What comes next</h2>
<table>{rows}</table>
</body></html>
'''


def page(result, title):
    """The result of analyze() as one HTML file that loads nothing: the text, coloured by surprisal."""
    text = ''.join(
        f'<span style="background:{shade(token["surprisal"])[1]}" title="{html.escape(repr(token["text"]))}: '
        f'{token["probability"]:.3%}, rank {token["rank"]}, {token["surprisal"]:.2f} bits">'
        f'{html.escape(token["text"])}</span>' for token in result['tokens'])
    legend = ' '.join(
        f'<span style="background:{colour}">&nbsp;{f"up to {limit}" if limit < math.inf else "more"}&nbsp;</span>'
        for limit, _, colour in SHADES)
    rows = ''.join(
        f'<tr><td>{row["probability"]:.2%}</td><td><code>{html.escape(repr(row["text"]))}</code></td>'
        f'<td><div style="width:{row["probability"] * 20:.2f}em"></div></td></tr>\n' for row in result['next'])
    return PAGE.format(title=html.escape(title), summary=html.escape(summary(result)), legend=legend, text=text,
                       rows=rows)
