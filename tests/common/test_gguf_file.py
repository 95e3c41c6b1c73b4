"""GGUF files, read back with the gguf package, and in llama.cpp if its binding is here."""
import json
import os
import random
import re

import numpy as np
import pytest
import torch

from common import gguf_file
from common.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, GPT2Tokenizer, train_bpe
from model import GPT, GPTConfig

gguf = pytest.importorskip('gguf')
TEXT = "It was a quiet evening; we'll see 12 ships.\n\n\tKorean: 한글은 세종대왕이 만든 글자이다. naïve 漢字 🙂 "
CHARS = CharTokenizer(sorted({*TEXT, *'\\\r\x00\x7f\u200b\u3000▁Ġ<|>'}))


def make(vocab_size, **more):
    """A random model, of whose parameters none is constant."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(block_size=16, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=32,
                                    activation='gelu_tanh'), **more})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def read(path):
    """({name: array}, {key: value}) of a file; numbers are as llama.cpp gets them."""
    reader = gguf.GGUFReader(path)
    arrays = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return arrays, {key: field.contents() for key, field in reader.fields.items()}


def bpe(size):
    return BPETokenizer(train_bpe([TEXT * 20], size))


@pytest.mark.parametrize('bias', [True, False])
def test_each_tensor_has_llama_cpps_name_and_our_values(tmp_path, bias):
    model = make(320, bias=bias)
    gguf_file.write(model, bpe(300), tmp_path / 'model.gguf')
    arrays, fields = read(tmp_path / 'model.gguf')
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)
    expected = {}
    for name, p in model.transformer.named_parameters():
        theirs = table.get_name(f'transformer.{name}', try_suffixes=('.weight', '.bias'))
        expected[theirs] = p.detach()[:300] if name == 'wte.weight' else p.detach()
    for name in set(arrays) - set(expected):  # llama.cpp has no model without biases
        assert not bias and name.endswith('.bias')
        expected[name] = torch.zeros(len(expected[name.removesuffix('bias') + 'weight']))
    assert set(arrays) == set(expected) and len(arrays) == 2 * 12 + 4
    assert all(np.array_equal(arrays[name], expected[name]) for name in arrays)
    shape = dict(context_length=16, embedding_length=32, feed_forward_length=128, block_count=2)
    assert all(fields[f'gpt2.{key}'] == value for key, value in shape.items())
    assert fields['gpt2.attention.head_count'] == 2 and fields['general.file_type'] == 0
    assert fields['gpt2.attention.layer_norm_epsilon'] == np.float32(1e-5)


@pytest.mark.parametrize('precision', ['float16', 'int8'])
def test_a_smaller_precision_rounds_the_matrices_and_nothing_else(tmp_path, precision):
    model = make(64)
    gguf_file.write(model, None, tmp_path / 'model.gguf', precision)
    arrays, _ = read(tmp_path / 'model.gguf')
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / 'model.gguf').tensors}
    for name, p in gguf_file.tensors(model, 64):
        p = p.detach().numpy()
        if p.ndim == 1 or name == 'position_embd.weight':
            assert types[name] == 'F32' and np.array_equal(arrays[name], p)
        elif precision == 'float16':
            assert types[name] == 'F16' and np.array_equal(arrays[name], p.astype('float16'))
        else:
            scale = np.abs(p.reshape(-1, 32)).max(axis=1, keepdims=True) / 127  # of each block; kept in float16
            error = np.abs(arrays[name] - p).reshape(-1, 32)
            assert types[name] == 'Q8_0' and error.any() and (error <= (0.5 + 127 * 2**-11) * scale).all()


@pytest.mark.parametrize('size', [257, 300])  # 257: no merges
def test_a_bpe_has_the_same_tokens_merges_and_end(tmp_path, size):
    tokenizer = bpe(size)
    gguf_file.write(make(320), tokenizer, tmp_path / 'model.gguf')
    fields = read(tmp_path / 'model.gguf')[1]
    content = json.loads(tokenizer.to_json())['model']
    tokens, merges = fields['tokenizer.ggml.tokens'], [' '.join(merge) for merge in content['merges']]
    assert tokens == [tokenizer.bpe.id_to_token(i) for i in range(size)] and len(merges) == size - 257
    assert fields['tokenizer.ggml.merges'] == (merges or [gguf_file.NOT_A_MERGE])
    assert fields['tokenizer.ggml.token_type'] == [3 if token == END_OF_TEXT else 1 for token in tokens]
    assert fields['tokenizer.ggml.eos_token_id'] == tokenizer.end_id and not fields['tokenizer.ggml.add_bos_token']
    assert fields['tokenizer.ggml.model'] == 'gpt2' and fields['tokenizer.ggml.pre'] == 'gpt-2'


def test_characters_are_one_token_each_and_none_is_the_end(tmp_path):
    gguf_file.write(make(CHARS.vocab_size), CHARS, tmp_path / 'model.gguf')
    fields = read(tmp_path / 'model.gguf')[1]
    found = [re.sub(rb'\\x(..)', lambda code: bytes.fromhex(code[1].decode()), token.encode()).decode()
             for token in fields['tokenizer.ggml.tokens']]
    assert found == CHARS.chars and '\n' not in ''.join(fields['tokenizer.ggml.tokens'])
    assert fields['tokenizer.ggml.model'] == 'rwkv' and 'tokenizer.ggml.eos_token_id' not in fields


def changed(change):
    content = json.loads(train_bpe([TEXT], 300))
    change(content)
    return BPETokenizer(json.dumps(content))


def as_unigram(content):
    content['model'] = {'type': 'Unigram', 'unk_id': 0, 'vocab': [['a', 0.0], ['b', -1.0]]}


def move_last_id(content):
    vocab = content['model']['vocab']
    vocab[max(vocab, key=vocab.get)] += 5


OTHERS = {
    'normalizer': lambda content: content.update(normalizer={'type': 'Lowercase'}),
    'not split as GPT-2': lambda content: content['pre_tokenizer'].update(add_prefix_space=True),
    'not split as GPT-2 ': lambda content: content['pre_tokenizer'].update(use_regex=False),
    'the special token <pad>': lambda content: content['added_tokens'].append(
        {**content['added_tokens'][0], 'id': 300, 'content': '<pad>'}),
    'ignore_merges': lambda content: content['model'].update(ignore_merges=True),
    'truncation': lambda content: content.update(truncation={
        'direction': 'Right', 'max_length': 8, 'strategy': 'LongestFirst', 'stride': 0}),
    'padding': lambda content: content.update(padding={
        'strategy': {'Fixed': 8}, 'direction': 'Right', 'pad_to_multiple_of': None, 'pad_id': 0, 'pad_type_id': 0,
        'pad_token': END_OF_TEXT}),
    'ids with gaps': move_last_id, 'a model of the type Unigram': as_unigram,
    **{f'{key} at <.endoftext.>': lambda content, key=key: content['added_tokens'][0].update({key: True})
       for key in ('lstrip', 'rstrip', 'single_word', 'normalized')}}


@pytest.mark.parametrize('reason', OTHERS)
def test_a_vocabulary_that_llama_cpp_lacks_is_refused(tmp_path, reason):
    with pytest.raises(ValueError, match=f'no tokenizer with the same ids.*{reason.strip()}'):
        gguf_file.write(make(320), changed(OTHERS[reason]), tmp_path / 'model.gguf')
    assert not (tmp_path / 'model.gguf').exists()


def test_a_model_that_llama_cpp_lacks_is_refused(tmp_path):
    for precision, reason, shape in (('float32', 'a modern model', {'modern': True}),
                                     ('int8', 'n_embd=48 is no multiple of 32', {'n_embd': 48})):
        with pytest.raises(ValueError, match=reason):
            gguf_file.write(make(64, **shape), None, tmp_path / 'model.gguf', precision)
        assert not (tmp_path / 'model.gguf').exists()


def test_what_llama_cpp_does_otherwise_is_said():
    ascii, tanh, exact = CharTokenizer('ab'), GPTConfig(activation='gelu_tanh'), GPTConfig()
    assert list(gguf_file.differences(tanh, ascii)) == list(gguf_file.differences(tanh, bpe(257))) == []
    assert 'GELU by the tanh approximation' in next(gguf_file.differences(exact, ascii))
    assert 'only text in the characters that the model knows' in next(gguf_file.differences(tanh, CHARS))


@pytest.fixture
def session(tmp_path):
    """session(model, tokenizer, precision): a gguf_file.Session of them; skips without llama.cpp."""
    pytest.importorskip('llama_cpp', reason='llama.cpp is not here: pip install llama-cpp-python')

    def write(model, tokenizer, precision='float32'):
        gguf_file.write(model, tokenizer, tmp_path / 'model.gguf', precision)
        return gguf_file.Session(str(tmp_path / 'model.gguf'), model.config)
    return write


@pytest.mark.parametrize('kind', ['char', 'bpe', 'bpe without merges', 'gpt2'])
def test_llama_cpp_gives_any_text_the_same_ids(session, kind):
    if kind == 'gpt2' and not os.environ.get('TIKTOKEN_CACHE_DIR'):
        pytest.skip("needs GPT-2's vocabulary files: set TIKTOKEN_CACHE_DIR to a folder that has them")
    tokenizer = {'char': lambda: CHARS, 'bpe': lambda: bpe(340), 'bpe without merges': lambda: bpe(257),
                 'gpt2': GPT2Tokenizer}[kind]()
    llama = session(make(tokenizer.vocab_size + 47), tokenizer).new()  # with padding, as GPT-2's to 50304
    pool = list(CHARS.chars) if kind == 'char' else [*TEXT, "'s", '  ', '\n\n', '\r\n', '\xa0', '½', '١', END_OF_TEXT]
    draw = random.Random(0)
    for _ in range(300):
        text = ''.join(draw.choices(pool, k=draw.randint(1, 30)))
        ids = llama.tokenize(text.encode(), special=True)
        assert ids == tokenizer.encode(text) and llama.detokenize(ids, special=True) == text.encode(), repr(text)


@pytest.mark.parametrize('precision, allowed', [('float32', 1e-2), ('float16', 3e-2), ('int8', 0.5)])
def test_llama_cpp_computes_a_model_without_a_vocabulary_in_every_precision(session, precision, allowed):
    model = make(320, bias=False)  # a model as for a benchmark: its ids are no text
    ids = torch.randint(320, (2, 16))
    theirs = torch.cat(list(session(model, None, precision).logits(ids.split(5, dim=1))), dim=1)
    with torch.no_grad():
        ours = model(ids, targets=ids)[0]
    assert ours.std() > 0.5 and (theirs - ours).abs().max() < allowed
