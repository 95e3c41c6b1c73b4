"""
One model in a chat, with the conversation as its token ids. A model that was tuned on instructions is asked in the form
it was trained on (the prompt in its dataset's meta.json) and answers; any other model continues the text.
"""
import contextlib
import copy
import os
import time
from dataclasses import dataclass

import torch

from common import console, generate, prompts
from common.sampling import analysis
from common.tokenizer import TextStream


@dataclass
class Turn:
    text: str         # what the user typed
    text_ids: list    # with the template and separators around it
    answer: str
    answer_ids: list
    ended: bool       # by end-of-text


def vocabulary(tokenizer):
    """What two tokenizers that give the same ids have in common."""
    return (type(tokenizer), tokenizer.vocab_size, getattr(tokenizer, 'chars', None),
            getattr(tokenizer, 'content', None))


class Speaker:
    """A model and its view of the conversation. `meta`: its dataset's meta.json. `step`: the compiled model or None."""

    def __init__(self, name, model, tokenizer, meta, step=None):
        self.name, self.model, self.tokenizer, self.step = name, model, tokenizer, step
        self.end = [] if tokenizer.end_id is None else [tokenizer.end_id]
        self.newline = []
        with contextlib.suppress(ValueError):  # a vocabulary may lack it
            self.newline = tokenizer.encode('\n')
        self.template = meta.get('prompt')  # the form of an instruction; None for a model that continues the text
        if self.template and '{instruction}' not in self.template:
            raise ValueError(f'{self.title()} cannot chat: its dataset has the prompt {self.template!r:.200}, without '
                             '{instruction} for what is typed')
        self.device = next(model.parameters()).device
        self.cache = None  # with what the model has seen of ids(); None: nothing
        self.speed = None  # of the last answer: (tokens, seconds to the first, seconds)
        self.composed_told = False  # whether a line has said that a text is taken in NFC
        self.begin('')

    def title(self):
        """Its name as a terminal may show it."""
        return console.visible(os.path.normpath(self.name))

    def describe(self):
        """The model in one sentence."""
        config, weight = self.model.config, self.model.transformer.wte.weight
        return (f'{self.title()}: {config.n_layer} layers, {config.n_embd} wide, a context of '
                f'{config.block_size} tokens, {str(weight.dtype).removeprefix("torch.")} on {self.device}.')

    def begin(self, system):
        """Forget the conversation; the text `system` precedes the next one. ValueError if it cannot be encoded."""
        asked = system and self.template
        self.system_ids = self.end + self.encode_given(f'{system}\n\n') if asked else self.encode_given(system)
        self.turns, self.overflow_told = [], False
        self.empty_cache()

    def empty_cache(self):
        """What the model has seen is no longer the beginning of ids()."""
        cache, self.cache = self.cache, None
        if cache is not None:
            cache.begin(0)
            self.cache = cache

    def ids(self):
        """The ids of the whole conversation."""
        return self.system_ids + [i for turn in self.turns for i in turn.text_ids + turn.answer_ids]

    def encode(self, text):
        """The ids of the next turn's text, in the form that the model expects. ValueError for unknown characters."""
        before = self.ids()
        if not self.template:
            separator = self.newline if before and before[-1:] != self.end else []
            return separator + self.encode_given(text) or ([] if before else [self.tokenizer.start_id])
        if self.end:
            separator = self.end if not before or self.turns and before[-1:] != self.end else []
        else:
            separator = 2 * self.newline if self.turns else []
        return separator + self.encode_given(self.template.replace('{instruction}', text))

    def encode_given(self, text):
        """The ids of a text from the user. ValueError if it cannot be encoded."""
        form, ids = prompts.encode_one(self.tokenizer, text)
        if form != text and not self.composed_told:
            self.composed_told = True
            prompts.say(f'what you typed has {prompts.COMPOSED}')
        return ids

    def answer(self, text, text_ids, max_new_tokens, stops, **options):
        """
        Answer `text`, whose encode() is text_ids: yields the pieces of the answer as they come. Ctrl-C and errors end
        the answer and are passed on; the conversation goes on from what was shown.
        """
        answer_ids, answer = [], ''
        if self.template:  # stop before the model writes the next instruction itself
            stops = [*stops, self.template.partition('{instruction}')[0].strip()]
        pieces = TextStream(self.tokenizer, stops)
        begin, first = time.perf_counter(), None
        size = self.model.config.block_size
        cache, self.cache = self.cache, None  # back again after the last token: an error may leave it half updated
        try:
            idx = torch.tensor([self.ids() + text_ids], device=self.device)
            if cache is None:
                cache = generate.KVCache(size, static=self.step is not None)
            elif idx.size(1) > size:  # from here on it would depend on all that was before, unlike another model's
                cache.begin(0)
            for token, _ in generate.stream(self.model, idx, max_new_tokens, cache=cache, step=self.step,
                                            vocab_size=self.tokenizer.vocab_size, **options):
                first = first or time.perf_counter() - begin
                answer_ids.append(token.item())
                piece = pieces.push(answer_ids[-1])
                answer += piece
                yield piece
                if pieces.finished:
                    break
        finally:
            self.speed = len(answer_ids), first, time.perf_counter() - begin
            rest = pieces.rest()
            if pieces.finished == 'stop':  # forget the stop string too
                answer_ids = self.tokenizer.encode(answer)
            self.turns.append(Turn(text, text_ids, answer + rest, answer_ids, pieces.finished == 'end'))
        if pieces.finished == 'stop':
            cache.begin(0)
        self.cache = cache
        yield rest

    def undo(self):
        """Forget the last turn, and return it."""
        turn = self.turns.pop()
        self.empty_cache()
        return turn

    def overflow(self, text_ids):
        """A line, once in a conversation, if it no longer fits the context with the next text; else None."""
        tokens, size = len(self.ids() + text_ids), self.model.config.block_size
        if tokens <= size or self.overflow_told:
            return None
        self.overflow_told = True
        return f'the conversation has {tokens} tokens; {self.title()} sees the last {size} of them'

    def replay(self, system, turns, tokenizer=None):
        """
        A Speaker of the same model with a conversation, possibly another model's. `tokenizer` is that of the turns'
        ids; a different vocabulary encodes their text anew. ValueError if it cannot.
        """
        other = copy.copy(self)
        other.cache = None
        other.begin(system)
        same = tokenizer is not None and vocabulary(tokenizer) == vocabulary(self.tokenizer)
        for turn in turns:
            answer_ids = turn.answer_ids if same else self.tokenizer.encode(turn.answer) + self.end * turn.ended
            other.turns.append(Turn(turn.text, other.encode(turn.text), turn.answer, answer_ids, turn.ended))
        return other

    @torch.no_grad()
    def next_tokens(self, text):
        """The likeliest next tokens now, or after `text`."""
        ids = self.ids() + (self.encode(text) if text else [])
        while ids and ids[-1] == self.tokenizer.end_id and not text:
            ids.pop()  # show what else could have come in its place
        idx = torch.tensor([ids or [self.tokenizer.start_id]], device=self.device)
        logits = generate.next_logits(self.model, idx)[0, :self.tokenizer.vocab_size]
        return analysis.next_tokens(logits, self.tokenizer)
