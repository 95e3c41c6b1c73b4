"""How fast text is generated: what the figures mean, and others with the same weights."""
import sys
import time

import pytest
import torch

from common.benchmark import decoding, peers
from model import GPT, GPTConfig

SIZES = 3, 5, 9  # tokens in the prompt, tokens to generate, top_k


def new_model(**changes):
    torch.manual_seed(0)
    shape = dict(block_size=16, vocab_size=96, n_layer=2, n_head=2, n_embd=32, activation='gelu_tanh')
    return GPT(GPTConfig(**{**shape, **changes})).eval()


def test_the_figures_are_medians_and_ratios_in_the_same_precision():
    speeds = {'float32, batch 1': [2.0, 9.0, 4.0], 'int8, batch 1': [8.0], 'int8, batch 4': [6.0],
              'float32, batch 1, without the cache': [1.0], 'llama.cpp, int8, batch 1': [5.0],
              'Hugging Face, float32, batch 1': [2.0], 'Hugging Face, bfloat16, batch 1': [3.0]}
    found = decoding.figures(speeds, {'int8, batch 1': [0.8, 0.9, 1.0]})
    assert found == {'float32, batch 1': 4.0, 'int8, batch 1': 8.0, 'int8, batch 4': 6.0,
                     'float32, batch 1, without the cache': 1.0, 'llama.cpp, int8, batch 1': 5.0,
                     'Hugging Face, float32, batch 1': 2.0, 'Hugging Face, bfloat16, batch 1': 3.0,
                     'times as fast as llama.cpp, int8': 1.6, 'times as fast as Hugging Face, float32': 2.0,
                     'int8, batch 1: the last 100 tokens by the first': 0.9}
    lines = list(decoding.table(found, speeds, weights=10**6, bandwidth=16e6))
    assert any(line.split() == 'int8, batch 1 8.0 8.0 to 8.0 50%'.split() for line in lines)
    assert any(line.split() == 'float32, batch 1 4.0 2.0 to 9.0 100%'.split() for line in lines)
    assert lines[-3:] == ['2.00 times as fast as Hugging Face, float32', '1.60 times as fast as llama.cpp, int8',
                          'int8, batch 1: the last 100 tokens by the first: 0.90'] or len(lines) > 3


def test_the_end_of_a_long_text_is_compared_with_its_beginning(monkeypatch):
    """The first 100 tokens behind the prompt's, and the last 100, here at half the speed."""
    times = [*range(101), *range(101, 201), *range(202, 402, 2)]

    def write(tokens):
        return times[:tokens]
    monkeypatch.setattr(decoding.roofline, 'seconds', lambda run, device: 1.0)
    speeds, last_by_first, bandwidth = decoding.measure({'a': write, 'b': lambda tokens: None}, 301, 2, 'cpu')
    assert last_by_first == {'a': [0.5, 0.5]} and bandwidth == 2**29 and set(speeds) == {'a', 'b'}
    assert decoding.measure({'a': write}, 250, 1, 'cpu')[1] == {}


@pytest.mark.parametrize('precision', decoding.BYTES)
def test_ours_says_when_each_token_came(precision):
    begin = time.perf_counter()
    times = decoding.ours(new_model(), precision, 2, SIZES, 'cpu')(5)
    assert len(times) == 5 and begin < times[0] and times == sorted(times)


def test_what_is_not_installed_is_left_out_in_a_line(monkeypatch, capsys):
    for package in ('transformers', 'llama_cpp', 'ctranslate2'):
        monkeypatch.setitem(sys.modules, package, None)
    assert peers.ways(new_model, peers.PEERS, SIZES, 'cpu') == {}
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(' is left out: ')[0] for line in lines] == ['Hugging Face', 'llama.cpp', 'CTranslate2']


def test_hugging_face_gets_the_same_weights(monkeypatch):
    transformers = pytest.importorskip('transformers')
    made = []
    generate = transformers.GPT2LMHeadModel.generate
    monkeypatch.setattr(transformers.GPT2LMHeadModel, 'generate',
                        lambda self, *args, **options: made.append(self) or generate(self, *args, **options))
    model, ids = new_model(), torch.randint(96, (2, 7))
    peers.hugging_face(model, 'float32', SIZES, 'cpu')(5)
    with torch.no_grad():
        assert torch.allclose(made[0](ids).logits, model(ids, ids)[0], atol=1e-5)


@pytest.mark.parametrize('name', ['llama.cpp', 'CTranslate2'])
def test_others_write_as_many_tokens(name):
    pytest.importorskip({'llama.cpp': 'llama_cpp', 'CTranslate2': 'ctranslate2'}[name])
    make, precisions, _ = peers.PEERS[name]
    for precision in precisions:
        make(new_model(), precision, SIZES, 'cpu')(5)
