"""Files are written whole or not at all, and a lock is held by one process."""
import errno
import os
import sys

import pytest

from common import files
from running import ROOT, ok, python


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), files.write_whole(path) as f:
        f.write('half')
        f.flush()
        raise KeyboardInterrupt
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    with files.write_whole(path) as f:
        f.write('새')
    assert path.read_text(encoding='utf-8') == '새' and list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_by_one_process(tmp_path):
    path = tmp_path / '.lock'
    (tmp_path / 'ask.py').write_text('from common import files\nprint(files.is_locked(".lock"))')
    assert not files.is_locked(path) and not path.exists()
    lock = files.lock(path)
    for held in ('True', 'False'):
        assert ok(python('ask.py', cwd=tmp_path, PYTHONPATH=ROOT)).stdout.strip() == held
        lock.release()


@pytest.mark.skipif(sys.platform == 'win32', reason='flock is a call of Unix')
@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize('is_there', [False, True], ids=['no file yet', 'a file of an earlier run'])
def test_a_disk_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys, number, is_there):
    if is_there:
        (tmp_path / '.lock').touch()

    def flock(fd, operation):
        raise OSError(number, 'no')
    monkeypatch.setattr('fcntl.flock', flock)
    assert files.lock_if_possible(str(tmp_path / '.lock'), 'be careful') is None
    assert capsys.readouterr().out.endswith('be careful\n')
    assert not files.is_locked(str(tmp_path / '.lock'))


def test_a_lock_whose_folder_is_removed_meanwhile_is_an_error(tmp_path, monkeypatch):
    def lock(path):
        raise FileNotFoundError(path)
    monkeypatch.setattr(files, 'lock', lock)
    with pytest.raises(FileNotFoundError):
        files.lock_if_possible(str(tmp_path / '.lock'), '')


@pytest.mark.skipif(sys.platform == 'win32', reason='flock is a call of Unix')
def test_a_turn_is_taken_on_a_disk_without_locks_too(tmp_path, monkeypatch, capsys):
    def flock(fd, operation):
        raise OSError(errno.ENOLCK, 'no')
    monkeypatch.setattr('fcntl.flock', flock)
    with files.turn(str(tmp_path / '.lock'), 'wait'):
        (tmp_path / 'done').touch()
    assert (tmp_path / 'done').exists() and capsys.readouterr().out == ''


def test_a_lock_in_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.lock_if_possible(str(tmp_path / 'gone' / '.lock'), '')


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'real').write_text('old')
    (tmp_path / 'link').symlink_to('real')
    with files.write_whole(tmp_path / 'link') as f:
        f.write('new')
    assert os.path.islink(tmp_path / 'link') and (tmp_path / 'real').read_text() == 'new'
