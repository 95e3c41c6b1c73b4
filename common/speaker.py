"""
A model in a conversation. One that was tuned on instructions answers, in the form that it learned (the prompt of its
dataset's meta.json); any other continues the text.
"""
import time

import torch

from common import analysis, generate
from common.tokenizer import TextStream


class Speaker:
    """
    A model, and the conversation as it sees it. `meta` is its dataset's meta.json; `step` the model compiled, or None.
    """

    def __init__(self, name, model, tokenizer, meta, step=None):
        self.name, self.model, self.tokenizer, self.step = name, model, tokenizer, step
        self.template = meta.get('prompt')  # of an instruction, or None
        self.device = next(model.parameters()).device
        self.cache = generate.KVCache(model.config.block_size, static=step is not None)
        self.speed = None  # (tokens, seconds to the first, seconds) of the last answer
        self.begin('')

    def begin(self, system):
        """Forget the conversation; `system` stands before the next one."""
        self.turns = []  # of each: (what was said, its ids, the answer, its ids)
        self.opening = self.tokenizer.encode(system + '\n\n' if system and self.template else system)
        self.cache.begin(0)

    def ids(self):
        """All of the conversation."""
        return self.opening + [i for _, said, _, answered in self.turns for i in said + answered]

    def encode(self, text):
        """The ids of what is said next, in the form that the model knows."""
        before, end = self.ids(), self.tokenizer.end_id
        if not self.template:
            separator = '\n' if before and before[-1] != end else ''
            return self.tokenizer.encode(separator + text) or ([] if before else [self.tokenizer.start_id])
        text = self.template.replace('{instruction}', text)
        if end is None:
            return self.tokenizer.encode('\n\n' * bool(self.turns) + text)
        return [end] * (before[-1:] != [end]) + self.tokenizer.encode(text)

    def answer(self, text, max_new_tokens, stops, **options):
        """Say text; yields the answer's pieces as they come. A KeyboardInterrupt ends the answer and is passed on."""
        said, tokens, answer = self.encode(text), [], ''
        if self.template:  # it must not answer for both
            stops = [*stops, self.template.partition('{instruction}')[0].strip() or '\n\n']
        pieces = TextStream(self.tokenizer, stops)
        idx = torch.tensor([self.ids() + said], device=self.device)
        begin, first = time.perf_counter(), None
        try:
            for token, _ in generate.stream(self.model, idx, max_new_tokens, cache=self.cache, step=self.step,
                                            vocab_size=self.tokenizer.vocab_size, **options):
                first = first or time.perf_counter() - begin
                tokens.append(token.item())
                piece = pieces.push(tokens[-1])
                answer += piece
                yield piece
                if pieces.finished:
                    break
        except KeyboardInterrupt:
            self.cache.begin(0)  # which may have seen half a token
            raise
        finally:
            self.speed = len(tokens), first, time.perf_counter() - begin
            rest = pieces.rest()
            if pieces.finished == 'stop':  # forget the stop string too
                tokens = self.tokenizer.encode(answer)
                self.cache.begin(0)
            self.turns.append((text, said, answer + rest, tokens))
        yield rest

    def undo(self):
        """Forget the last turn, and return what was said in it."""
        self.cache.begin(0)
        return self.turns.pop()[0]

    def retell(self, system, turns):
        """Take over a conversation from another model. ValueError if this one lacks some of its characters."""
        self.begin(system)
        for said, _, answered, _ in turns:
            end = [] if not self.template or self.tokenizer.end_id is None else [self.tokenizer.end_id]
            self.turns.append((said, self.encode(said), answered, self.tokenizer.encode(answered) + end))

    @torch.no_grad()
    def next_tokens(self, text):
        """The likeliest tokens at this point, or after text."""
        ids = self.ids() + (self.encode(text) if text else [])
        while ids and ids[-1] == self.tokenizer.end_id and not text:
            ids.pop()  # what would have come in its place
        idx = torch.tensor([ids or [self.tokenizer.start_id]], device=self.device)
        logits = generate.advance(self.model, idx)[0, :self.tokenizer.vocab_size]
        return analysis.next_tokens(logits, self.tokenizer)
