"""Files are written whole or not at all, and a lock is held by one process."""
import errno
import sys

import filelock
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
@pytest.mark.parametrize('number, goes_on', [(errno.ENOLCK, True), (errno.EACCES, False)])
def test_a_disk_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys, number, goes_on):
    def acquire(self):
        raise OSError(number, 'no')
    monkeypatch.setattr(filelock.FileLock, 'acquire', acquire)
    if goes_on:
        assert files.lock_if_possible(str(tmp_path / '.lock'), 'be careful') is None
        assert capsys.readouterr().out.endswith('be careful\n')
    else:
        with pytest.raises(PermissionError):
            files.lock_if_possible(str(tmp_path / '.lock'), '')
