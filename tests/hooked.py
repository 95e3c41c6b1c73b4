"""
A script of the project with a piece of code ahead of it: what is to happen to a run, or to be noted of it, at a place
that it comes to by itself, whatever the machine's speed.

python tests/hooked.py CODE train.py --max_iters=20 ...

CODE finds torch, model and checkpoint (common/checkpoint.py), what is imported below, and the two functions.
"""
import builtins
import os
import runpy
import signal
import sys

HANG = 900  # seconds: no test takes nearly as long on any machine; a limit of this size only ends what hangs


def die():
    """As kill -9, or a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def when_printed(text, act):
    """Call act() each time a line with `text` has been printed."""
    original = builtins.print

    def watched(*args, **options):
        original(*args, **options)
        if any(text in str(arg) for arg in args):
            act()
    builtins.print = watched


if __name__ == '__main__':
    if hasattr(signal, 'alarm'):
        signal.alarm(HANG)
    code, sys.argv = sys.argv[1], sys.argv[2:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    import torch  # noqa: for CODE
    import model  # noqa: for CODE
    from common import checkpoint
    exec(code)
    runpy.run_path(sys.argv[0], run_name='__main__')
