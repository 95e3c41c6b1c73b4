"""The processes of a run: whether one is still there, which others belong to it, and their end. No torch, no numpy."""
import contextlib
import os
import signal
import subprocess

MARK = 'NANOGPT_RUN'  # set for each process that the manager starts: the real path of its out_dir


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


def marked(out_dir):
    """
    The pids of all processes that inherited the mark of a run, whoever their parents are now: torchrun gives each rank
    a session of its own, so killing its process group would leave them. Linux only; elsewhere [].
    """
    mark, found = os.fsencode(f'{MARK}={os.path.realpath(out_dir)}'), []
    for name in os.listdir('/proc') if os.path.isdir('/proc/self') else []:
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f'/proc/{name}/environ', 'rb') as f:  # of another user, or gone
                if mark in f.read().split(b'\0'):
                    found.append(int(name))
    return found


def oldest(out_dir):
    """(pid, process_start) of the marked process of a run that started first, its leader, or (None, None)."""
    found = [(start, pid) for pid in marked(out_dir) if (start := process_start(pid))]
    start, pid = min(found, key=lambda one: int(one[0]), default=(None, None))
    return pid, start


def kill(out_dir, leader=None):
    """SIGKILL to every process of a run. leader: its first process, if that is known to be alive."""
    if leader is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
    for _ in range(3):  # one that is just being forked is found the next time
        for pid in marked(out_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
