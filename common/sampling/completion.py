"""Continue prompts and print the results: as text, the first one while it is generated, or as JSON objects."""
import json
import sys
import time

import torch
from tqdm import tqdm

from common import generate, inference, prompts, scoring
from common.console import SEPARATOR, visible
from common.tokenizer import TextStream

CACHE_BYTES = 2e9  # for the keys and values of one batch


class Sample:
    """One continuation, while it grows."""

    def __init__(self, tokenizer, stops):
        self.stream, self.tokens, self.logprobs, self.text = TextStream(tokenizer, stops), [], [], ''
        self.begin = self.end = time.perf_counter()

    def push(self, token, logprob=None):
        """Add an id, unless the text has ended. Returns the text that is certain now."""
        if self.stream.finished:
            return ''
        self.tokens.append(token)
        self.logprobs += [] if logprob is None else [logprob]
        self.end = time.perf_counter()
        text = self.stream.push(token)
        self.text += text
        return text

    def finish(self, reason):
        """No more ids come, for `reason` unless the text had ended. Returns the text that was held back."""
        self.reason = self.stream.finished or reason
        rest = self.stream.rest()
        self.text += rest
        return rest

    def as_json(self, prompt):
        speed = len(self.tokens) / (self.end - self.begin) if self.tokens else None
        scores = {'logprobs': self.logprobs} if self.logprobs else {}
        return json.dumps({'prompt': prompt, 'text': self.text, 'tokens': self.tokens, 'finish_reason': self.reason,
                           'tokens_per_second': speed, **scores}, ensure_ascii=False)

    def footer(self):
        """The lines below the text."""
        count = len(self.logprobs)
        mean = f'\nmean log-probability of {count} tokens: {sum(self.logprobs) / count:.3f}' if count else ''
        return mean + SEPARATOR.rstrip()


def encode(model, tokenizer, texts):
    """[(text, ids)] of the prompts as prompts.encode() has them, with at least one id. Says which are too long."""
    found = [(text, ids or [tokenizer.start_id]) for text, ids in prompts.encode(tokenizer, texts)]
    lengths, context = [len(ids) for _, ids in found], model.config.block_size
    too_long = sum(length > context for length in lengths)
    if too_long:
        which = 'the prompt' if len(texts) == 1 else f'{too_long} of {len(texts)} prompts do not fit; the longest'
        print(f'{which} has {max(lengths):,} tokens; the model sees the last {context:,}', file=sys.stderr)
    return found


def cut_into_batches(config, lengths, num_samples, max_new_tokens, padded):
    """
    Yields batches of texts, each the list of their prompts' numbers, in order and as large as CACHE_BYTES allows.
    `lengths`: of the prompts, in tokens. Different ones share a batch only if `padded`, and if the whole texts fit the
    context: beyond it a text would lose its beginning earlier than it does alone.
    """
    bytes_per_token = 2 * config.n_layer * config.n_embd * 4
    batch, longest = [], 0
    for i in [i for i in range(len(lengths)) for _ in range(num_samples)]:
        end = max(longest, lengths[i]) + max_new_tokens
        fits = (len(batch) + 1) * bytes_per_token * min(config.block_size, end) <= CACHE_BYTES
        goes_along = lengths[i] == longest or padded and end <= config.block_size
        if batch and not (fits and goes_along):
            yield batch
            batch, longest = [], 0
        batch.append(i)
        longest = max(longest, lengths[i])
    yield batch


def write_samples(model, tokenizer, texts, out, as_json, num_samples, max_new_tokens, stops=(), seed=0, logprobs=False,
                  use_cache=True, compile=False, **options):
    """
    Continue each of the prompts `texts` num_samples times, in batches; they are printed in the order of the prompts. A
    KeyboardInterrupt ends the texts, and what there is of them is printed; so does an error, which is then raised.
    Options as in generate.next_token. One generator draws for all: what follows a prompt depends on the others, too.
    """
    found, device = encode(model, tokenizer, texts), next(model.parameters()).device
    lengths, context = [len(ids) for _, ids in found], model.config.block_size
    size = min(context, max(lengths) + max_new_tokens)
    batches = list(cut_into_batches(model.config, lengths, num_samples, max_new_tokens, use_cache and not compile))
    most = max(map(len, batches))
    step = inference.compile_step(model, most, size, str(device)) if compile else None
    options.update(generator=torch.Generator(device).manual_seed(seed), vocab_size=tokenizer.vocab_size)
    failure = None
    for batch in batches:
        reason, samples = 'length', [Sample(tokenizer, stops) for _ in batch]
        rows = batch + batch[-1:] * (most - len(batch)) if step is not None else batch  # it always takes a full batch
        longest = max(lengths[i] for i in batch)
        padding = [longest - lengths[i] for i in rows]
        idx = torch.tensor([[0] * pad + found[i][1] for pad, i in zip(padding, rows)], device=device)
        padding = torch.tensor(padding, device=device) if any(padding) else None
        if use_cache:
            options['cache'] = generate.KVCache(size if step is not None else min(context, longest + max_new_tokens),
                                                padding, static=step is not None)
        unseen = found[batch[0]][0]  # stands before the next piece of the first text
        try:
            for tokens, scores in generate.stream(model, idx, max_new_tokens, use_cache, step=step, logprobs=logprobs,
                                                  **options):
                scores = [None] * len(rows) if scores is None else scores.tolist()
                pieces = [sample.push(*one) for sample, *one in zip(samples, tokens[:, 0].tolist(), scores)]
                if pieces[0] and not as_json:
                    print(visible(unseen + pieces[0]), end='', file=out, flush=True)
                    unseen = ''
                if all(sample.stream.finished for sample in samples):
                    break
        except KeyboardInterrupt:
            reason = 'interrupted'
        except (ValueError, RuntimeError, MemoryError) as error:  # not an OSError: then there is no output any more
            if not samples[0].tokens:
                raise
            reason, failure = 'interrupted', error
        for n, (i, sample) in enumerate(zip(batch, samples)):
            prompt, rest = found[i][0], sample.finish(reason)
            text = unseen + rest if n == 0 else prompt + sample.text
            print(sample.as_json(prompt) if as_json else visible(text) + sample.footer(), file=out, flush=True)
        if reason != 'length':
            break
    if failure is not None:
        raise failure


def write_beams(model, tokenizer, texts, out, as_json, num_samples, max_new_tokens, num_beams, length_penalty=1.0,
                stops=(), logprobs=False, use_cache=True, compile=False, repetition_penalty=None):
    """
    Print up to num_samples texts of a beam search from each of the prompts `texts`. `stops` cut them afterwards; equal
    ones are printed once. A KeyboardInterrupt ends the search, and what it has found is printed.
    """
    found, device = encode(model, tokenizer, texts), next(model.parameters()).device
    size = min(model.config.block_size, max(len(ids) for _, ids in found) + max_new_tokens)
    step = inference.compile_step(model, num_beams, size, str(device)) if compile else None
    for prompt, ids in found:
        ids = torch.tensor([ids], device=device)
        cache = generate.KVCache(size, static=step is not None) if use_cache else None
        begin = time.perf_counter()
        beams = generate.beam_search(
            model, ids, max_new_tokens, num_beams, length_penalty, tokenizer.end_id, tokenizer.vocab_size,
            repetition_penalty, cache, step,
            progress=lambda steps: tqdm(steps, unit='tokens', disable=None, leave=False))
        end = time.perf_counter()
        printed, interrupted = set(), False
        for _, tokens in beams:
            sample, scores = Sample(tokenizer, stops), [None] * len(tokens)
            if logprobs and tokens:
                whole = torch.cat((ids[0], torch.tensor(tokens, device=device)))
                scores = scoring.score(model, whole, tokenizer.vocab_size)[0][-len(tokens):].tolist()
            for token, score in zip(tokens, scores):
                sample.push(token, score)
            sample.finish('length' if len(tokens) == max_new_tokens else 'interrupted')
            interrupted = interrupted or sample.reason == 'interrupted'
            sample.begin, sample.end = begin, end
            if sample.text in printed or len(printed) == num_samples:
                continue
            printed.add(sample.text)
            text = sample.as_json(prompt) if as_json else visible(prompt + sample.text) + sample.footer()
            print(text, file=out, flush=True)
        if interrupted:
            break
