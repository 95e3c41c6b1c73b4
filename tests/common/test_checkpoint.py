"""Files that are never half written, and never executed."""
import os
import pickle

import pytest
import torch

from common import checkpoint as checkpoint_file


def state(iter_num=1, **more):
    return dict(model={'weight': torch.full((3,), float(iter_num))}, model_args={}, iter_num=iter_num, **more)


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


def full_state(iter_num):
    return state(iter_num, optimizer={}, best_val_loss=1.0)


def test_the_state_before_the_newest_is_kept_and_used_if_the_newest_is_damaged(tmp_path):
    out_dir, last = str(tmp_path), tmp_path / 'last.pt'
    for i in (1, 2, 3):
        checkpoint_file.save_last(full_state(i), out_dir)
    assert sorted(os.listdir(tmp_path)) == ['last.pt', 'prev.pt']
    assert checkpoint_file.load_to_resume('resume', out_dir)[0]['iter_num'] == 3
    last.write_bytes(last.read_bytes()[:500])
    checkpoint, path = checkpoint_file.load_to_resume('resume', out_dir)
    assert checkpoint['iter_num'] == 2 and path.endswith('prev.pt')
    # or the next save would put the damaged file in the good one's place
    checkpoint_file.claim_out_dir(out_dir, path).release()
    checkpoint_file.save_last(full_state(4), out_dir)
    last.write_bytes(b'')
    assert checkpoint_file.load_to_resume('resume', out_dir)[0]['iter_num'] == 2
    (tmp_path / 'prev.pt').write_bytes(b'')
    with pytest.raises(ValueError, match='last.pt is damaged.*prev.pt is damaged'):
        checkpoint_file.load_to_resume('resume', str(tmp_path))


def test_tokens_that_an_older_state_did_not_count_are_worked_out():
    sizes = dict(gradient_accumulation_steps=2, batch_size=3, block_size=4)
    older = full_state(5) | dict(config=sizes, best_val_loss=torch.tensor(2.0))  # as the original nanoGPT's
    assert checkpoint_file.Progress.of(older) == checkpoint_file.Progress(iter_num=5, tokens=120, best_val_loss=2.0)
    assert checkpoint_file.Progress.of(older | dict(tokens=7)).tokens == 7
    assert checkpoint_file.Progress.of(None) == checkpoint_file.Progress()


def test_weights_alone_are_nothing_to_resume(tmp_path):
    checkpoint_file.save(state(), str(tmp_path / 'ckpt.pt'))
    with pytest.raises(FileNotFoundError, match='nothing to resume'):
        checkpoint_file.load_to_resume('resume', str(tmp_path))
    assert checkpoint_file.weights_path(str(tmp_path)) == str(tmp_path / 'ckpt.pt')


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


def test_a_run_started_over_is_set_aside(tmp_path):
    for name in ('last.pt', 'iter_000010.pt', 'metrics.jsonl', 'notes.txt', 'mine.pt'):
        (tmp_path / name).write_text(name)
    (tmp_path / 'onnx').mkdir()
    (tmp_path / 'onnx' / 'model.onnx').write_text('weights')
    assert checkpoint_file.set_aside(str(tmp_path)) == str(tmp_path / 'previous-1')
    assert sorted(os.listdir(tmp_path)) == ['mine.pt', 'notes.txt', 'previous-1']
    assert os.listdir(tmp_path / 'previous-1' / 'onnx') == ['model.onnx']  # an export of its weights
    assert checkpoint_file.set_aside(str(tmp_path)) is None
    (tmp_path / 'last.pt').write_text('the second')
    assert checkpoint_file.set_aside(str(tmp_path)) == str(tmp_path / 'previous-2')
    assert (tmp_path / 'previous-1' / 'last.pt').read_text() == 'last.pt'
