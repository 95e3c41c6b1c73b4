"""The processes that belong to a run are found, and end with it."""
import os
import subprocess
import sys

import pytest

from common import processes
from running import HANG


@pytest.mark.skipif(sys.platform != 'linux', reason='the environment of processes is in /proc')
def test_all_that_a_run_has_started_is_killed_in_whatever_session_it_is(tmp_path):
    """As torchrun's ranks are: with a session of their own, and no parent any more."""
    code = ('import subprocess, sys\n'
            'for own in (True, False):\n'
            f'    subprocess.Popen(["sleep", "{HANG}"], start_new_session=own, stdout=subprocess.DEVNULL)\n'
            'print("there")')
    env = {**os.environ, processes.MARK: processes.mark(tmp_path, 5.25)}
    # of another run, and of another queue's in the same folder
    others = [subprocess.Popen(['sleep', str(HANG)], env={**env, processes.MARK: mark})
              for mark in (processes.mark(f'{tmp_path} 2', 5.25), processes.mark(tmp_path, 6.5))]
    subprocess.run([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, start_new_session=True)
    found = processes.marked(tmp_path, 5.25)
    assert len(found) == 2 and processes.marked(tmp_path) == {**found, others[1].pid: 6.5}
    assert processes.oldest(tmp_path)[2] in (5.25, 6.5) and processes.oldest('/') == (None, None, None)
    starts = {pid: processes.process_start(pid) for pid in found}
    processes.kill(tmp_path, 5.25)
    while any(processes.process_start(pid) == start for pid, start in starts.items()):
        pass  # until the kernel has ended them
    assert processes.marked(tmp_path, 5.25) == {} and [other.poll() for other in others] == [None, None]
    for other in others:
        other.kill()
        other.wait()


def test_a_process_that_is_stopped_ends_too(tmp_path):
    process = subprocess.Popen(['sleep', str(HANG)], start_new_session=True)
    process.send_signal(19)
    processes.kill(tmp_path, 5.25, process.pid)
    assert process.wait() == -9
