"""Files that are never half written, and never executed."""
import os
import pickle

import pytest
import torch

from common import checkpoint as checkpoint_file, weights
from conftest import tiny_state as state

class Bomb:
    def __reduce__(self):
        return os.mkdir, ('exploded',)


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = str(tmp_path / 'ckpt.pt')
    checkpoint_file.save(state(1), path)

    def half_a_save(checkpoint, f):
        f.write(b'half')
        raise OSError('No space left on device')
    monkeypatch.setattr(torch, 'save', half_a_save)
    with pytest.raises(OSError):
        checkpoint_file.save(state(2), path)
    assert checkpoint_file.load(path)['iter_num'] == 1 and os.listdir(tmp_path) == ['ckpt.pt']


@pytest.mark.parametrize('content', ['random', 'truncated', 'flipped', 'empty', 'text', 'pickle', 'torch pickle',
                                     'no checkpoint'])
def test_what_is_not_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'ckpt.pt'
    if content == 'random':
        path.write_bytes(os.urandom(1000))
    if content == 'truncated':
        torch.save(state(), path)
        path.write_bytes(path.read_bytes()[:-200])
    if content == 'flipped':  # a single byte, within a tensor
        checkpoint_file.save(dict(state(), weights=torch.ones(1000)), path)
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    if content == 'empty':
        path.write_bytes(b'')
    if content == 'text':
        path.write_text('hello')
    if content == 'pickle':
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    if content == 'torch pickle':
        torch.save(dict(state(), config=Bomb()), path)
    if content == 'no checkpoint':
        torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match='ckpt.pt'):
        checkpoint_file.load(str(path))
    assert not os.path.exists('exploded')


def test_prefixes_of_wrappers_are_stripped():
    for key in ('a.weight', '_orig_mod.a.weight', 'module.a.weight', 'module._orig_mod.a.weight',
                '_orig_mod.module.a.weight'):
        assert checkpoint_file.clean_key(key) == 'a.weight'


def spoilt(tmp_path, spoil):
    """The path of a checkpoint after spoil(checkpoint)."""
    checkpoint = state(meta={'tokenizer': 'char', 'vocab_size': 4, 'chars': 'abcd'}, config={'dataset': 'x'})
    spoil(checkpoint)
    torch.save(checkpoint, tmp_path / 'ckpt.pt')
    return str(tmp_path / 'ckpt.pt')


def put(*path):
    """A function that sets checkpoint[path[0]][path[1]]... to the last of `path`."""
    def spoil(checkpoint):
        for key in path[:-2]:
            checkpoint = checkpoint[key]
        checkpoint[path[-2]] = path[-1]
    return spoil


@pytest.mark.parametrize('reason, spoil', [
    ('lm_head.weight differs', put('model', 'lm_head.weight', torch.full((4, 4), 2.0))),
    ('wpe.weight is not finite', put('model', 'transformer.wpe.weight', torch.full((4, 4), float('nan')))),
    ('ln_f.weight is not finite', put('model', 'transformer.ln_f.weight', torch.full((4,), float('inf')))),
    ('wpe.weight is no tensor', put('model', 'transformer.wpe.weight', [1.0])),
    ('wpe.weight is no tensor', put('model', 'transformer.wpe.weight', torch.ones(4, 4, dtype=torch.int64))),
    ('it has no model', put('model', 'text')), ('it has no model', put('model_args', 'text')),
    ('n_head=0', put('model_args', 'n_head', 0)),
    ('n_layer=None', lambda checkpoint: checkpoint['model_args'].pop('n_layer')),
    ('n_layer=True', put('model_args', 'n_layer', True)), ('bias=1', put('model_args', 'bias', 1)),
    ('1 blocks, and n_layer=9', put('model_args', 'n_layer', 9)),
    ('should be .10000000000, 4.', put('model_args', 'vocab_size', 10**10)),
    ('should be .10000000000, 4.', put('model_args', 'block_size', 10**10)),
    ('its config is a str', put('config', 'text')), ('its iter_num is a str', put('iter_num', '7')),
    ('is no loss', put('best_val_loss', torch.ones(2))), ('is no loss', put('best_val_loss', torch.tensor(1j))),
    ('is no loss', put('best_val_loss', float('nan'))), ('is no loss', put('recent_losses', ['a'])),
    ('its iter_num is -5', put('iter_num', -5)), ('its train_s is nan', put('train_s', float('nan'))),
    ('its tokens is -1', put('tokens', -1)), ('its evaluated_at is -2', put('evaluated_at', -2)),
    ('n_head=3 for n_embd=4', put('model_args', 'n_head', 3)), ('n_head=1000', put('model_args', 'n_head', 10**9)),
    ('dropout=nan', put('model_args', 'dropout', float('nan'))),
    ('wpe.weight is no tensor', put('model', 'transformer.wpe.weight', torch.ones(4, 4).to_sparse())),
    ('the meta is a str', put('meta', 'text')),
    ('no vocab_size', lambda checkpoint: checkpoint['meta'].pop('vocab_size')),
    ('vocab_size=.4., a str', put('meta', 'vocab_size', '4')),
    ('0 chars for', lambda checkpoint: checkpoint['meta'].pop('chars')),
    ('3 chars for', put('meta', 'chars', 'abc')), ('twice', put('meta', 'chars', 'aabc')),
    ('no single', put('meta', 'chars', ['a', 'b', 'c', 'de'])), ('no single', put('meta', 'chars', ['a', 'b', 'c', 4])),
    ("tokenizer in the meta is 'word'", put('meta', 'tokenizer', 'word')), ('50257', put('meta', 'tokenizer', 'gpt2')),
    ('no tokenizer_json', put('meta', 'tokenizer', 'bpe')),
    ('damaged', put('meta', {'tokenizer': 'bpe', 'vocab_size': 4, 'tokenizer_json': '{'}))])
def test_a_checkpoint_that_no_script_could_use_says_what_is_wrong(tmp_path, reason, spoil):
    with pytest.raises(ValueError, match=f'ckpt.pt is damaged or not a checkpoint.*{reason}'):
        checkpoint_file.load(spoilt(tmp_path, spoil))


def test_a_checkpoint_of_a_newer_version_is_whole_and_cannot_be_read_yet(tmp_path):
    with pytest.raises(OSError, match='a newer version of this project wrote this checkpoint'):
        checkpoint_file.load(spoilt(tmp_path, put('format', 99)))


def test_what_is_unusual_but_whole_loads(tmp_path):
    for spoil in (put('meta', None), lambda checkpoint: checkpoint.pop('meta'), put('best_val_loss', torch.tensor(1.0)),
                  put('model_args', 'unknown', 1), lambda checkpoint: checkpoint['model_args'].pop('bias'),
                  put('model', 'transformer.h.0.attn.bias', torch.ones(1, 1, 4, 4, dtype=torch.bool))):
        assert checkpoint_file.load(spoilt(tmp_path, spoil))['iter_num'] == 1


@pytest.mark.parametrize('error', [PermissionError(13, 'no'), OSError(5, 'I/O'), OSError(116, 'stale'), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
@pytest.mark.parametrize('place', ['builtins.open', 'zipfile.ZipFile.testzip', 'zipfile._EndRecData', 'torch.load'])
def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error, place):
    path = str(tmp_path / 'ckpt.pt')
    checkpoint_file.save(state(), path)

    def fail(*args, **options):
        raise error
    with monkeypatch.context() as patch, pytest.raises(OSError, match='cannot be read now|not enough memory') as caught:
        patch.setattr(place, fail)
        checkpoint_file.load(path)
    assert caught.value.filename == path and caught.value.errno
    assert checkpoint_file.load(path)['iter_num'] == 1


def test_the_best_weights_are_told_with_their_iteration(tmp_path, capsys):
    for best, newest, taken, said in (
            (3, 5, 'ckpt.pt', 'the best weights, of iteration 3; the run has come to iteration 5'),
            (0, 5, 'last.pt', 'still those of the untrained model; the run has come to iteration 5'),
            (0, 0, 'ckpt.pt', 'of iteration 0')):
        checkpoint_file.save(state(best, config={'init_from': 'scratch'}), str(tmp_path / 'ckpt.pt'))
        checkpoint_file.save(state(newest, config={'init_from': 'scratch'}), str(tmp_path / 'last.pt'))
        assert checkpoint_file.weights_path(str(tmp_path)) == str(tmp_path / taken)
        assert said in capsys.readouterr().err
    (tmp_path / 'ckpt.pt').write_bytes(b'damaged')
    with pytest.raises(ValueError, match='ckpt.pt is damaged.*; for the newest weights: --init_from=.*last.pt'):
        weights.load(str(tmp_path))
    (tmp_path / 'ckpt.pt').unlink()
    assert checkpoint_file.weights_path(str(tmp_path)) == str(tmp_path / 'last.pt')
    assert 'there are no best ones yet; the run has come to iteration 0' in capsys.readouterr().err
    checkpoint_file.save(state(0, config={'init_from': 'gpt2'}), str(tmp_path / 'ckpt.pt'))  # no better ones came
    checkpoint_file.save(state(5, config={'init_from': 'gpt2'}), str(tmp_path / 'last.pt'))
    assert checkpoint_file.weights_path(str(tmp_path)) == str(tmp_path / 'ckpt.pt')
