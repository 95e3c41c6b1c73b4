"""
A model in a conversation. One that was tuned on instructions answers, in the form that it learned (the prompt of its
dataset's meta.json); any other continues the text.
"""
import time
from dataclasses import dataclass

import torch

from common import analysis, generate
from common.tokenizer import TextStream


@dataclass
class Turn:
    text: str       # what was said
    said: list      # its ids
    answer: str
    answered: list  # its ids
    ended: bool     # whether the last of them is end-of-text


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
        """Forget the conversation; `system` stands before the next one. ValueError if it cannot be encoded."""
        end = self.tokenizer.end_id
        if system and self.template:
            self.opening = ([] if end is None else [end]) + self.tokenizer.encode(system + '\n\n')
        else:
            self.opening = self.tokenizer.encode(system)
        self.turns = []
        self.cache.begin(0)

    def ids(self):
        """All of the conversation."""
        return self.opening + [i for turn in self.turns for i in turn.said + turn.answered]

    def encode(self, text):
        """The ids of what is said next, in the form that the model knows. ValueError for what it does not know."""
        before, end = self.ids(), self.tokenizer.end_id
        if not self.template:
            separator = self.newline() if before and before[-1] != end else []
            return separator + self.tokenizer.encode(text) or ([] if before else [self.tokenizer.start_id])
        asked = self.tokenizer.encode(self.template.replace('{instruction}', text))
        if end is None:
            return (2 * self.newline() if self.turns else []) + asked
        return ([end] if not before or self.turns and before[-1] != end else []) + asked

    def newline(self):
        """The ids of a line's end; none if the model knows no lines."""
        try:
            return self.tokenizer.encode('\n')
        except ValueError:
            return []

    def answer(self, text, max_new_tokens, stops, **options):
        """Say text; yields the answer's pieces as they come. A KeyboardInterrupt ends the answer and is passed on."""
        said, tokens, answer = self.encode(text), [], ''
        if self.template:  # it must not answer for both
            stops = [*stops, self.template.partition('{instruction}')[0].strip()]
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
            self.turns.append(Turn(text, said, answer + rest, tokens, pieces.finished == 'end'))
        yield rest

    def undo(self):
        """Forget the last turn, and return what was said in it."""
        self.cache.begin(0)
        return self.turns.pop().text

    def retell(self, system, turns):
        """Begin with a conversation, maybe another model's. ValueError if this one does not know its characters."""
        ours, end = turns is self.turns, self.tokenizer.end_id
        self.begin(system)
        for turn in turns:
            ended = turn.ended and end is not None
            answered = turn.answered if ours else self.tokenizer.encode(turn.answer) + ([end] if ended else [])
            self.turns.append(Turn(turn.text, self.encode(turn.text), turn.answer, answered, ended))

    @torch.no_grad()
    def next_tokens(self, text):
        """The likeliest tokens at this point, or after text."""
        ids = self.ids() + (self.encode(text) if text else [])
        while ids and ids[-1] == self.tokenizer.end_id and not text:
            ids.pop()  # what would have come in its place
        idx = torch.tensor([ids or [self.tokenizer.start_id]], device=self.device)
        logits = generate.advance(self.model, idx)[0, :self.tokenizer.vocab_size]
        return analysis.next_tokens(logits, self.tokenizer)
