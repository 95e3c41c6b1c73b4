"""Output for the user: unbuffered lines, exits with an error message, human-readable figures. It needs no torch."""
import contextlib
import math
import os
import sys

SEPARATOR = '\n---------------\n'  # between sample texts


def print_flush(*args, end='\n'):
    """Print at once, even to a file. When the reader of a pipe is gone, as in `train.py | head`, the run goes on."""
    try:
        print(*args, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def script_name():
    """The script that runs, as messages name it: train.py, shakespeare/prepare.py."""
    folder, name = os.path.split(os.path.abspath(sys.argv[0]))
    return f'{os.path.basename(folder)}/{name}' if name == 'prepare.py' else name


def stop(message, code=2):
    """End the script with one line on stderr. Exit code 2 means wrong usage or settings."""
    if os.environ.get('LOCAL_RANK', '0') == '0':  # once per machine, not once per process
        print(f'{script_name()}: {message}', file=sys.stderr, flush=True)
    sys.exit(code)


@contextlib.contextmanager
def exit_on_error():
    """Treat ValueError and OSError in the block as user errors: print one line, exit with code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        stop(error)


def perplexity(loss):
    """exp(loss); infinity where a float cannot hold it, NaN for NaN."""
    return math.inf if loss > 700 else math.exp(loss)


def duration(seconds):
    """12s, 3m04s, 2h05m or 4d03h: the two largest units."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds}s'
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    if seconds < 86400:
        return f'{seconds // 3600}h{seconds // 60 % 60:02d}m'
    return f'{seconds // 86400}d{seconds // 3600 % 24:02d}h'
