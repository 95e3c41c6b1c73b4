"""
Files that several processes, a kill or a full disk cannot spoil: written whole or not at all, and locks. It needs no
torch.
"""
import contextlib
import errno
import os
import shutil

import filelock


class Locked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def write_whole(path, mode='w'):
    """
    A file to write in place of `path`. At every moment `path` is either the old file or the new one, complete: the
    content goes to a temporary file beside it, which takes its place when the block ends. If the block raises, the old
    file stays.
    """
    temporary = f'{path}.tmp'
    try:
        with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as f:
            yield f
            sync(f)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync(file):
    """Wait until what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def lock(path):
    """
    Lock the file `path`, which is created if needed. Returns a filelock.FileLock, held until release() or the end of
    the process. Locked if another process holds it; OSError if it cannot be locked.
    """
    held = filelock.FileLock(path, timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        raise Locked(f'another process holds {path}') from None
    return held


def lock_if_possible(path, advice):
    """lock(), but on a file system without locks, as some network disks are: then a line with `advice`, and None."""
    try:
        return lock(path)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        print(f'{os.path.dirname(path)} cannot be locked ({error}): {advice}', flush=True)
        return None


def is_locked(path):
    """Whether a process holds the lock at `path`."""
    if not os.path.exists(path):
        return False
    try:
        lock(path).release()
    except Locked:
        return True
    except OSError:  # no locks on this disk
        pass
    return False


def existing_parent(path):
    """The nearest folder on the way up from `path` that exists."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def free_bytes(path):
    """The free space of the disk that `path` is, or will be, on."""
    return shutil.disk_usage(existing_parent(path)).free
