"""How fast text is generated: what the figures mean, and others with the same weights."""
import time
from dataclasses import asdict

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
    assert lines[-3:] == ['1.60 times as fast as llama.cpp, int8', '2.00 times as fast as Hugging Face, float32',
                          'int8, batch 1: the last 100 tokens by the first: 0.90']


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
    model = new_model(n_embd=128)
    times = decoding.ours(model, precision, 2, SIZES, 'cpu')(5)
    assert len(times) == 5 and begin < times[0] and times == sorted(times)
    matrix = model.get_submodule('transformer.h.0').blocks[0].attn.c_attn if hasattr(
        model.transformer.h[0], 'blocks') else model.transformer.h[0].attn.c_attn
    assert matrix.weight.dtype == getattr(torch, precision)


CODE = """import torch
from model import GPT, GPTConfig
def make_model(config):
    torch.manual_seed(0)
    return GPT(GPTConfig(**config)).eval()"""


def start(names, **changes):
    return peers.ways(names, CODE, [asdict(new_model(**changes).config)], SIZES, 'cpu')


@pytest.mark.slow
def test_what_is_not_installed_or_broken_is_left_out_in_a_line(monkeypatch, capsys, tmp_path):
    for package, error in (('transformers', 'ImportError'), ('llama_cpp', 'RuntimeError'), ('ctranslate2', 'KeyError')):
        (tmp_path / f'{package}.py').write_text(f'raise {error}("no {package}")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert start(peers.PEERS) == {}
    assert capsys.readouterr().out.splitlines() == [
        'Hugging Face is left out (pip install transformers): ImportError: no transformers',
        'llama.cpp is left out (pip install gguf llama-cpp-python): RuntimeError: no llama_cpp',
        "CTranslate2 is left out (pip install ctranslate2 transformers): KeyError: 'no ctranslate2'"]


@pytest.mark.slow
@pytest.mark.parametrize('name', peers.PEERS)
def test_a_peer_writes_as_many_tokens_in_a_process_of_its_own(name, capsys):
    pytest.importorskip({'llama.cpp': 'llama_cpp', 'CTranslate2': 'ctranslate2', 'Hugging Face': 'transformers'}[name])
    ways = start([name])
    assert list(ways) == [f'{name}, {precision}, batch 1' for precision in peers.PEERS[name][1]]
    assert {write(5) for write in ways.values()} == {5} and capsys.readouterr().out == ''


def test_a_precision_that_a_model_cannot_have_is_left_out_alone(capsys):
    pytest.importorskip('llama_cpp')
    assert list(start(['llama.cpp'], n_embd=48)) == ['llama.cpp, float32, batch 1', 'llama.cpp, float16, batch 1']
    assert 'llama.cpp, int8 is left out: ValueError: n_embd=48 is no multiple of 32' in capsys.readouterr().out


def test_a_peer_that_dies_is_named(monkeypatch, tmp_path):
    (tmp_path / 'transformers.py').write_text('import os; os._exit(7)')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(ValueError, match='Hugging Face ended with exit code 7; leave it out with --use_huggingface=Fals'):
        start(['Hugging Face'])


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
