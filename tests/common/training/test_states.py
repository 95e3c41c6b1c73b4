"""The states of a run: which one a resume takes, and that no older one ever replaces a newer one."""
import os

import pytest
import torch

from common import checkpoint as checkpoint_file
from common.training import states
from conftest import tiny_state as state


def full_state(iter_num):
    return state(iter_num, optimizer={}, best_val_loss=1.0)


def test_the_state_before_the_newest_is_kept_and_used_if_the_newest_is_damaged(tmp_path):
    out_dir, last = str(tmp_path), tmp_path / 'last.pt'
    for i in (1, 2, 3):
        states.save_last(full_state(i), out_dir)
    assert sorted(os.listdir(tmp_path)) == ['last.pt', 'prev.pt']
    assert states.load_to_resume('resume', out_dir)[0]['iter_num'] == 3
    last.write_bytes(last.read_bytes()[:500])
    checkpoint, path = states.load_to_resume('resume', out_dir)
    assert checkpoint['iter_num'] == 2 and path.endswith('prev.pt')
    # or the next save would put the damaged file in the good one's place
    states.claim_out_dir(out_dir, path).release()
    states.save_last(full_state(4), out_dir)
    last.write_bytes(b'')
    assert states.load_to_resume('resume', out_dir)[0]['iter_num'] == 2
    (tmp_path / 'prev.pt').write_bytes(b'')
    checkpoint_file.save(state(config={'init_from': 'scratch'}), str(tmp_path / 'ckpt.pt'))
    with pytest.raises(ValueError, match='last.pt is damaged.*prev.pt is damaged.*--init_from=.*ckpt.pt --out_dir='):
        states.load_to_resume('resume', str(tmp_path))


def test_a_damaged_state_keeps_a_name_of_its_own(tmp_path, capsys):
    """However often it happens, and also if the file that was about to become last.pt is the damaged one."""
    contents = [b'first', b'second', b'third']
    for i, content in enumerate(contents):
        states.save_last(full_state(10 + i), str(tmp_path))
        states.save_last(full_state(20 + i), str(tmp_path))
        (tmp_path / ('last.pt.new' if i == 2 else 'last.pt')).write_bytes(content)
        if i == 2:
            (tmp_path / 'last.pt').unlink()
        path = states.load_to_resume('resume', str(tmp_path))[1]
        states.claim_out_dir(str(tmp_path), path).release()
        assert states.load_to_resume('resume', str(tmp_path))[0]['iter_num'] == 10 + i
    kept = ['last.pt.damaged', 'last.pt.damaged-2', 'last.pt.new.damaged']
    assert [(tmp_path / name).read_bytes() for name in kept] == contents
    assert f'{tmp_path}/last.pt is damaged; it is now {tmp_path}/last.pt.damaged-2' in capsys.readouterr().out
    assert states.set_aside(str(tmp_path)) and os.listdir(tmp_path) == ['.lock', 'previous-1']


def test_a_damaged_state_is_kept_where_that_of_the_original_takes_its_place(tmp_path):
    checkpoint_file.save(full_state(1), str(tmp_path / 'ckpt.pt'))  # with an optimizer, as the original's
    (tmp_path / 'last.pt').write_bytes(b'damaged')
    path = states.load_to_resume('auto', str(tmp_path))[1]
    states.claim_out_dir(str(tmp_path), path).release()
    assert path.endswith('ckpt.pt') and (tmp_path / 'last.pt.damaged').read_bytes() == b'damaged'
    assert sorted(os.listdir(tmp_path)) == ['.lock', 'ckpt.pt', 'last.pt.damaged']


def test_a_state_of_a_newer_version_is_not_replaced_by_an_older_one(tmp_path, monkeypatch):
    states.save_last(full_state(1), str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_file, 'FORMAT', checkpoint_file.FORMAT + 1)
        states.save_last(full_state(2), str(tmp_path))
    with pytest.raises(OSError, match='newer version'):
        states.load_to_resume('auto', str(tmp_path))


def test_a_disk_that_is_gone_costs_the_save_and_not_the_run(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise OSError(5, 'Input/output error')
    state = full_state(1) | dict(config={'optimizer': 'adamw'})
    state['model_args']['modern'] = False
    for place in ('torch.save', 'shutil.disk_usage', 'os.replace'):  # each from here on
        monkeypatch.setattr(place, fail)
        assert states.save_run(str(tmp_path), state, state, best=True, keep_interval=0) == (False, False)
        assert 'not saved: [Errno 5] Input/output error' in capsys.readouterr().out


@pytest.mark.parametrize('init_from', ['auto', 'resume'])
def test_a_state_that_cannot_be_read_now_is_not_replaced_by_an_older_one(tmp_path, monkeypatch, init_from):
    for i in (1, 2):
        states.save_last(full_state(i), str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(path, *args, original=open):
        if str(path).endswith('last.pt'):
            raise PermissionError(13, 'Permission denied')
        return original(path, *args)
    with monkeypatch.context() as patch, pytest.raises(OSError, match='cannot be read now: Permission denied'):
        patch.setattr('builtins.open', fail)
        states.load_to_resume(init_from, str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize('name, problem', [
    ('', 'names no folder'), ('file', 'is a file, not a folder'), ('file/inside', 'is a file, not a folder'),
    ('link', 'is a link to .*nowhere.*, which does not exist'), ('folder', 'cannot be written to .Permission denied')])
def test_an_out_dir_that_cannot_be_one_is_named(tmp_path, monkeypatch, name, problem):
    (tmp_path / 'file').write_text('here first')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'folder').mkdir()

    def fail(dir):
        raise PermissionError(13, 'Permission denied')
    if name == 'folder':  # where root could write anyway
        monkeypatch.setattr('tempfile.TemporaryFile', fail)
    with pytest.raises(ValueError, match=f'out_dir=.*{problem}'):
        states.claim_out_dir(str(tmp_path / name) if name else '')
    assert (tmp_path / 'file').read_text() == 'here first'


def test_tokens_that_an_older_state_did_not_count_are_worked_out():
    sizes = dict(gradient_accumulation_steps=2, batch_size=3, block_size=4)
    older = full_state(5) | dict(config=sizes, best_val_loss=torch.tensor(2.0))  # as the original nanoGPT's
    assert states.Progress.of(older) == states.Progress(iter_num=5, tokens=120, best_val_loss=2.0)
    assert states.Progress.of(older | dict(tokens=7)).tokens == 7
    assert states.Progress.of(None) == states.Progress()


def test_weights_alone_are_nothing_to_resume(tmp_path):
    checkpoint_file.save(state(), str(tmp_path / 'ckpt.pt'))
    with pytest.raises(FileNotFoundError, match='nothing to resume'):
        states.load_to_resume('resume', str(tmp_path))
    assert checkpoint_file.weights_path(str(tmp_path)) == str(tmp_path / 'ckpt.pt')


def test_a_run_started_over_is_set_aside(tmp_path):
    for name in ('last.pt', 'iter_000010.pt', 'metrics.jsonl', 'notes.txt', 'mine.pt'):
        (tmp_path / name).write_text(name)
    (tmp_path / 'onnx').mkdir()
    (tmp_path / 'onnx' / 'model.onnx').write_text('weights')
    assert states.set_aside(str(tmp_path)) == str(tmp_path / 'previous-1')
    assert sorted(os.listdir(tmp_path)) == ['mine.pt', 'notes.txt', 'previous-1']
    assert os.listdir(tmp_path / 'previous-1' / 'onnx') == ['model.onnx']  # an export of its weights
    assert states.set_aside(str(tmp_path)) is None
    (tmp_path / 'last.pt').write_text('the second')
    assert states.set_aside(str(tmp_path)) == str(tmp_path / 'previous-2')
    assert (tmp_path / 'previous-1' / 'last.pt').read_text() == 'last.pt'
