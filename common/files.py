"""File writes that survive kills and full disks, and locks between processes. It needs no torch."""
import contextlib
import itertools
import os
import shutil


class Locked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def write_whole(path, mode='w'):
    """
    Open a file that replaces `path` when the block ends. At every moment `path` is the old file or the new one, whole:
    the content goes to a temporary file beside it. If the block raises, the old file stays. A link stays a link.
    """
    path = os.path.realpath(path)
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


def user_folder(variable, default):
    """
    The project's folder where the user keeps such files: in that of the environment variable, one of XDG's, or
    `default` in the home folder. None where the user has no place for it.
    """
    folder = os.environ.get(variable, '')
    if not os.path.isabs(folder):  # then the XDG specification ignores it
        home = os.path.expanduser('~')
        if home == '/' or not os.path.isabs(home):  # HOME is empty, or names no folder
            return None
        folder = os.path.join(home, default)
    return os.path.join(folder, 'nanogpt')


def make_private(folder):
    """Make a folder that only this user may change, with its parents. OSError if it is there and not so."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.stat(folder)
    if hasattr(os, 'getuid') and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f'{folder} is not only yours to change')


def lock(path, wait=False):
    """
    Lock the file `path`, which is created if needed. Returns a filelock.FileLock, held until release() or the end of
    the process. Locked if another process holds it for half a second, unless told to `wait`; OSError if it cannot be
    locked.
    """
    return acquire(path, -1 if wait else 0.5)  # is_locked() of another process holds it for an instant


def acquire(path, timeout):
    """lock() within so many seconds; -1: however long it takes."""
    import filelock  # here, so that a script without it can say so
    # no fallback: a soft lock, which is only a file, outlives a process that is killed
    held = filelock.FileLock(path, fallback_to_soft=False)
    try:
        held.acquire(timeout, poll_interval=0.01)
    except filelock.Timeout:
        raise Locked(f'another process holds {path}') from None
    return held


def lock_if_possible(path, advice):
    """Like lock(), but on a file system without locks (some network disks) print `advice` and return None."""
    open(path, 'a').close()  # an OSError here is about the file, not about the lock
    try:
        return lock(path)
    except FileNotFoundError:  # the folder has been removed meanwhile
        raise
    except OSError as error:
        print(f'{os.path.dirname(path)} cannot be locked ({error}): {advice}')
        return None


@contextlib.contextmanager
def turn(path, notice):
    """
    Hold the lock at `path` in the block. If another process holds it, print `notice` and wait. On a file system without
    locks the block is run nevertheless.
    """
    try:
        held = lock(path)
    except Locked:
        print(notice)
        held = lock(path, wait=True)
    except OSError:
        held = None
    try:
        yield
    finally:
        if held:
            held.release()


def is_locked(path):
    """Whether a process holds the lock at `path`. It is taken for an instant, which another is_locked() waits for."""
    if not os.path.exists(path):
        return False
    try:
        acquire(path, 0.1).release()
    except Locked:
        return True
    except PermissionError:
        raise
    except OSError:  # no locks on this disk
        pass
    return False


def exists(path):
    """Whether something is at `path`. Unlike os.path.exists, OSError if that cannot be told just now."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_folder(path, setting):
    """ValueError unless `path`, the value of that setting, is a folder or can become one."""
    if not path:
        raise ValueError(f"{setting}='' names no folder; leave it out, or name one")
    parent = os.path.abspath(path)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if os.path.islink(parent) and not os.path.exists(parent):
        raise ValueError(f'{setting}={path!r}: {parent} is a link to {os.readlink(parent)!r}, which does not exist; '
                         'make that folder, or name another one')
    if not os.path.isdir(parent):
        raise ValueError(f'{setting}={path!r}: {parent} is a file, not a folder; name another folder')


def free_name(path):
    """`path` itself, or path-2, path-3, ... if that exists. OSError if that cannot be told just now."""
    for number in itertools.count(1):
        name = path if number == 1 else f'{path}-{number}'
        try:
            os.lstat(name)
        except FileNotFoundError:
            return name


def existing_parent(path):
    """The nearest folder on the way up from `path` that exists."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def free_bytes(path):
    """The free space of the disk that `path` is, or will be, on."""
    return shutil.disk_usage(existing_parent(path)).free
