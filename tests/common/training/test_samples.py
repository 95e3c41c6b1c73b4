"""The fixed prompts of a run."""
import contextlib

import pytest
import torch

from common.tokenizer import BPETokenizer, train_bpe
from common.training import samples

CHAR = {'tokenizer': 'char', 'vocab_size': 3, 'chars': '\nab'}


def test_prompts_are_split_and_an_empty_one_starts_a_text(tmp_path):
    assert samples.encode_prompts(CHAR, '|ab') == [[0], [1, 2]]
    assert samples.encode_prompts(CHAR, '') == []
    (tmp_path / 'prompts.txt').write_text('ab\nb\n')
    for kind in ('FILE', 'LINES'):
        assert samples.encode_prompts(CHAR, f'{kind}:{tmp_path}/prompts.txt') == [[1, 2], [2]]


@pytest.fixture
def own_vocabulary():
    """(meta, tokenizer) of a small learned vocabulary."""
    content = train_bpe(['hello world'], 257)
    tokenizer = BPETokenizer(content)
    return {'tokenizer': 'bpe', 'vocab_size': tokenizer.vocab_size, 'tokenizer_json': content}, tokenizer


class Parrot(torch.nn.Module):
    """Continues each prompt by the same ids."""

    def __init__(self, ids):
        super().__init__()
        self.ids, self.weight = ids, torch.nn.Parameter(torch.zeros(1))

    def generate(self, idx, count, **options):
        return torch.cat((idx, torch.tensor([self.ids])), dim=1)


def write(meta, prompt, ids):
    return samples.write(Parrot(ids), [prompt], meta, 0, contextlib.nullcontext())


def test_a_sample_ends_where_its_text_ends(own_vocabulary):
    meta, tokenizer = own_vocabulary
    end, hello = tokenizer.end_id, tokenizer.encode('hello')
    assert write(meta, [end, *hello], [*hello, end, *hello]) == [tokenizer.decode([end, *hello, *hello])]
    assert write(CHAR, [1], [2, 0, 2]) == ['ab\nb']  # characters have no end of text


def test_a_sample_cannot_command_the_terminal():
    meta = {'tokenizer': 'char', 'vocab_size': 3, 'chars': 'a\x1b\x07'}
    assert write(meta, [0], [1, 2]) == ['a\\x1b\\x07']
