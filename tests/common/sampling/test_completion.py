"""Continuing prompts: several at once, and what of a text is printed."""
import io
import json

import pytest
import torch

from common import generate
from common.sampling import completion
from common.tokenizer import BPETokenizer, CharTokenizer, train_bpe
from conftest import slow

CHARS = CharTokenizer(['\n', *'abcdefgh<&"', *'ABCDEFGHIJKLMNOPQRSTUVWXYZ'])
PROMPTS = ['abc', '', 'd', 'efgABCDEF', 'abd']


def written(model, texts, num_samples=2, max_new_tokens=6, write=completion.write_samples, **options):
    """The objects that are printed as JSON."""
    out = io.StringIO()
    write(model, CHARS, texts, out, True, num_samples, max_new_tokens, **options)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def figures(objects):
    """JSON objects without their times, and with numbers that may differ in the last digits rounded."""
    for one in objects:
        del one['tokens_per_second']
        one['logprobs'] = [round(value, 3) for value in one['logprobs']]
    return objects


@pytest.mark.parametrize('max_new_tokens, options', [  # within the context of 16, and beyond it
    (6, {}), (24, {}), (6, {'repetition_penalty': 1.5}), (6, {'stops': ['A', 'b']}),
    *map(lambda case: slow(*case), [(6, {'use_cache': False}), (24, {'use_cache': False}),
                                    (24, {'repetition_penalty': 1.5}), (24, {'stops': ['A', 'b']})])])
def test_several_prompts_give_in_order_what_each_gives_alone(model, monkeypatch, max_new_tokens, options):
    options = dict(options, max_new_tokens=max_new_tokens, temperature=0, logprobs=True)
    alone = [one for text in PROMPTS for one in figures(written(model, [text], **options))]
    assert [one['prompt'] for one in alone] == [text for text in PROMPTS for _ in range(2)]
    assert figures(written(model, PROMPTS, **options)) == alone
    monkeypatch.setattr(completion, 'CACHE_BYTES', 3 * 16 * 2 * 2 * 32 * 4)  # of three texts at most
    assert figures(written(model, PROMPTS, **options)) == alone


def test_prompts_of_different_lengths_share_a_batch_within_the_context(model, monkeypatch):
    batches, stream = [], generate.stream

    def watched(model, idx, *args, **options):
        batches.append(len(idx))
        return stream(model, idx, *args, **options)
    monkeypatch.setattr(generate, 'stream', watched)
    for max_new_tokens, options, expected in ((6, {}, [10]), (8, {}, [6, 2, 2]), (40, {}, [2, 4, 2, 2]),
                                              (6, {'use_cache': False}, [2, 4, 2, 2])):
        written(model, PROMPTS, max_new_tokens=max_new_tokens, **options)
        assert batches == expected
        batches.clear()


def test_the_seed_decides_what_follows_several_prompts(model):
    first = [one['tokens'] for one in written(model, PROMPTS, seed=1)]
    assert first == [one['tokens'] for one in written(model, PROMPTS, seed=1)]
    assert first != [one['tokens'] for one in written(model, PROMPTS, seed=2)]


def test_beams_of_several_prompts_are_those_of_each(model):
    options = dict(write=completion.write_beams, num_beams=3, logprobs=True)
    alone = [one for text in PROMPTS for one in figures(written(model, [text], **options))]
    assert figures(written(model, PROMPTS, **options)) == alone and len(alone) == 2 * len(PROMPTS)


def test_ctrl_c_ends_the_texts_of_all_prompts(model, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt
    monkeypatch.setattr(generate, 'feed', interrupted)
    assert [one['prompt'] for one in written(model, PROMPTS, max_new_tokens=40)] == 2 * ['abc']


def test_a_prompt_longer_than_the_context_is_told(model, capsys):
    for texts, expected in ((['a' * 17], 'the prompt has 17 tokens; the model sees the last 16\n'), (['a' * 16], ''),
                            (['a' * 1234], 'the prompt has 1,234 tokens; the model sees the last 16\n'),
                            (['a', 'a' * 20, 'a' * 30],
                             '2 of 3 prompts do not fit; the longest has 30 tokens; the model sees the last 16\n')):
        for options in ({}, {'write': completion.write_beams, 'num_beams': 2}):
            written(model, texts, 1, 1, **options)
            assert capsys.readouterr().err == expected


def test_only_the_end_of_a_prompt_that_is_too_long_matters(model):
    long, short = (written(model, ['a' * n + 'bcdefghABCDEFGHI'], temperature=0) for n in (20, 0))
    assert [one['tokens'] for one in long] == [one['tokens'] for one in short]


class Writes:
    """As a model, whatever its input: one id after another."""

    def __init__(self, ids, vocab_size):
        self.ids, self.vocab_size = iter(ids), vocab_size
        self.config = type('Config', (), dict(block_size=99, n_layer=0, n_embd=0, modern=False))

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, idx, cache=None):
        return torch.nn.functional.one_hot(torch.tensor([[next(self.ids)]]), self.vocab_size).float(), None


def printed(known, ids, as_json=False, prompt='a', stops=()):
    """What is written of a text that a model continues with these ids, and each time that something is printed."""
    pieces = []
    out = type('Out', (), dict(write=lambda self, text: pieces.append(text), flush=lambda self: None))()
    completion.write_samples(Writes(ids, known.vocab_size), known, [prompt], out, as_json, 1, len(ids), stops,
                             temperature=0)
    return ''.join(pieces), pieces


def test_escape_characters_in_a_text_are_shown_and_not_obeyed():
    known = CharTokenizer('a\x1b\r\n\t\x9b\x07]2;')
    text = 'a\x1b]2;\x07\x9b\r\n\t\r'
    shown, pieces = printed(known, known.encode(text))
    assert shown == 'aa\\x1b]2;\\x07\\x9b\n\t\\r' + completion.SEPARATOR and len(pieces) > 5
    assert json.loads(printed(known, known.encode(text), as_json=True)[0])['text'] == text
    for stops in ((), ['\n]']):  # with which the first piece is empty
        assert printed(known, known.encode('\n2'), prompt='a\r', stops=stops)[0] == 'a\n2' + completion.SEPARATOR


def test_no_broken_character_is_printed():
    known = BPETokenizer(train_bpe([''], 257))
    ids = [known.encode('가')[0], *known.encode('나'), known.encode('가')[0]]
    assert printed(known, ids)[0] == 'a\\xea나' + completion.SEPARATOR
    assert json.loads(printed(known, ids, as_json=True)[0])['text'] == '\\xea나'
