"""
The processes of a run or a command: whether one is still there, which others belong to it, their end, and how many
cores they have. No torch, no numpy.
"""
import contextlib
import os
import signal
import subprocess

MARK = 'NANOGPT_RUN'  # set for each process that is started: see mark()


def cores():
    """How many cores of the CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def process_start(pid):
    """
    When a process started, as text. Together with the pid it identifies the process, because pids are reused. None if
    the process is gone, or a zombie: ended, but its parent has not fetched the exit code.
    """
    if os.path.isdir('/proc/self'):
        try:
            with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as f:
                stat = f.read().rpartition(')')[2].split()  # after the name, which may hold spaces and parentheses
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if stat[0] in 'ZX' else stat[19]  # clock ticks since boot: field 22 of proc(5)
    stat = subprocess.run(['ps', '-o', 'state=,lstart=', '-p', str(pid)], capture_output=True, text=True).stdout.split()
    return None if not stat or stat[0][0] == 'Z' else ' '.join(stat[1:])


def mark(out_dir, started):
    """The value of MARK for one start of a run: the folder alone would be that of another queue's run there, too."""
    return f'{os.path.realpath(out_dir)} {started!r}'


def marked(out_dir, started=None):
    """
    {pid: started} of all processes that inherited the mark of a run, whoever their parents are now: torchrun gives each
    rank a session of its own, so killing its process group would leave them. started: of one start; None: of any. Linux
    only; elsewhere {}.
    """
    prefix, found = os.fsencode(f'{MARK}={os.path.realpath(out_dir)} '), {}
    for name in os.listdir('/proc') if os.path.isdir('/proc/self') else []:
        if name.isdecimal() and int(name) != os.getpid():
            # OSError: of another user, or gone; ValueError: a longer path
            with contextlib.suppress(OSError, ValueError), open(f'/proc/{name}/environ', 'rb') as f:
                for variable in f.read().split(b'\0'):
                    if variable.startswith(prefix):
                        found[int(name)] = float(variable.removeprefix(prefix))
    return {pid: at for pid, at in found.items() if started in (None, at)}


def oldest(out_dir):
    """(pid, process_start, started) of the marked process that started first, a run's leader; or all None."""
    found = [(pid, start, started) for pid, started in marked(out_dir).items() if (start := process_start(pid))]
    return min(found, key=lambda one: int(one[1]), default=(None, None, None))


def kill(out_dir, started, leader=None):
    """SIGKILL to every process of one start of a run. leader: its first process, if that is known to be alive."""
    if leader is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: of one that has just ended
            os.killpg(leader, signal.SIGKILL)
    for _ in range(3):  # one that is just being forked is found the next time
        for pid in marked(out_dir, started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
