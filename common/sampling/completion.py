"""Continue a prompt and print the results: as text, the first one while it is generated, or as JSON objects."""
import json
import time

import torch
from tqdm import tqdm

from common import generate, inference
from common.console import SEPARATOR
from common.sampling import analysis
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
                           'tokens_per_second': speed, **scores})

    def footer(self):
        """The lines below the text."""
        count = len(self.logprobs)
        mean = f'\nmean log-probability of {count} tokens: {sum(self.logprobs) / count:.3f}' if count else ''
        return mean + SEPARATOR.rstrip()


def encode(model, tokenizer, prompt):
    """The ids (1, T) of the prompt, on the model's device."""
    ids = tokenizer.encode(prompt) or [tokenizer.start_id]
    return torch.tensor([ids], device=next(model.parameters()).device)


def write_samples(model, tokenizer, prompt, out, as_json, num_samples, max_new_tokens, stops=(), seed=0,
                  logprobs=False, use_cache=True, compile=False, **options):
    """
    Continue the prompt num_samples times, in batches as large as CACHE_BYTES allows. A KeyboardInterrupt ends the
    texts, and what there is of them is printed; so does an error, which is then raised. Options as in
    generate.next_token.
    """
    ids = encode(model, tokenizer, prompt)
    size = min(model.config.block_size, ids.size(1) + max_new_tokens)
    bytes_each = 2 * model.config.n_layer * model.config.n_embd * size * 4
    batch_size = min(num_samples, max(1, int(CACHE_BYTES / bytes_each)))
    step = inference.compile_step(model, batch_size, size, str(ids.device)) if compile else None
    options.update(generator=torch.Generator(ids.device).manual_seed(seed), vocab_size=tokenizer.vocab_size)
    left, reason, failure = num_samples, 'length', None
    while left > 0 and reason == 'length':
        samples = [Sample(tokenizer, stops) for _ in range(min(batch_size, left))]
        left -= len(samples)
        unseen = prompt  # stands before the next piece of the first text
        try:
            rows = batch_size if step is not None else len(samples)  # a compiled step always takes a full batch
            for tokens, scores in generate.stream(model, ids.expand(rows, -1), max_new_tokens, use_cache, step=step,
                                                  logprobs=logprobs, **options):
                scores = [None] * rows if scores is None else scores.tolist()
                texts = [sample.push(*one) for sample, *one in zip(samples, tokens[:, 0].tolist(), scores)]
                if not as_json:
                    print(unseen + texts[0], end='', file=out, flush=True)
                    unseen = ''
                if all(sample.stream.finished for sample in samples):
                    break
        except KeyboardInterrupt:
            reason = 'interrupted'
        except (ValueError, RuntimeError, MemoryError) as error:  # not an OSError: then there is no output any more
            if not samples[0].tokens:
                raise
            reason, failure = 'interrupted', error
        for i, sample in enumerate(samples):
            rest = sample.finish(reason)
            text = unseen + rest if i == 0 else prompt + sample.text
            print(sample.as_json(prompt) if as_json else text + sample.footer(), file=out, flush=True)
    if failure is not None:
        raise failure


def write_beams(model, tokenizer, prompt, out, as_json, num_samples, max_new_tokens, num_beams, length_penalty=1.0,
                stops=(), logprobs=False, use_cache=True, compile=False, repetition_penalty=None):
    """Print up to num_samples texts of a beam search. `stops` cut them afterwards; equal ones are printed once."""
    ids = encode(model, tokenizer, prompt)
    size = min(model.config.block_size, ids.size(1) + max_new_tokens)
    step = inference.compile_step(model, num_beams, size, str(ids.device)) if compile else None
    cache = generate.KVCache(size, static=step is not None) if use_cache else None
    begin = time.perf_counter()
    found = generate.beam_search(
        model, ids, max_new_tokens, num_beams, length_penalty, tokenizer.end_id, tokenizer.vocab_size,
        repetition_penalty, cache, step, progress=lambda steps: tqdm(steps, unit='tokens', disable=None, leave=False))
    end = time.perf_counter()
    printed = set()
    for _, tokens in found:
        sample, scores = Sample(tokenizer, stops), [None] * len(tokens)
        if logprobs and tokens:
            whole = torch.cat((ids[0], torch.tensor(tokens, device=ids.device)))
            scores = analysis.score(model, whole, tokenizer.vocab_size)[0][-len(tokens):].tolist()
        for token, score in zip(tokens, scores):
            sample.push(token, score)
        sample.finish('length' if len(tokens) == max_new_tokens else 'interrupted')
        sample.begin, sample.end = begin, end
        if sample.text in printed or len(printed) == num_samples:
            continue
        printed.add(sample.text)
        print(sample.as_json(prompt) if as_json else prompt + sample.text + sample.footer(), file=out, flush=True)
