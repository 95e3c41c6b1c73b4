"""File writes that survive kills and full disks, and locks between processes. It needs no torch."""
import contextlib
import os
import shutil

import filelock


class Locked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def write_whole(path, mode='w'):
    """
    Open a file that replaces `path` when the block ends. At every moment `path` is the old file or the new one, whole:
    the content goes to a temporary file beside it. If the block raises, the old file stays.
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


def lock(path, wait=False):
    """
    Lock the file `path`, which is created if needed. Returns a filelock.FileLock, held until release() or the end of
    the process. Locked if another process holds it, unless told to `wait`; OSError if it cannot be locked.
    """
    # no fallback: a soft lock, which is only a file, outlives a process that is killed
    held = filelock.FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        held.acquire()
    except filelock.Timeout:
        raise Locked(f'another process holds {path}') from None
    return held


def lock_if_possible(path, advice):
    """Like lock(), but on a file system without locks (some network disks) print `advice` and return None."""
    open(path, 'a').close()  # an OSError here is about the file, not about the lock
    try:
        return lock(path)
    except OSError as error:
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
    except PermissionError:
        raise
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
