"""What is known of a run: its process, its figures, its end."""
import os
import shutil
import subprocess
import time

import pytest

from common.experiments.experiment_list import Experiment
from common.experiments.manager import Manager
from common.experiments.runs import Run, State
from common.processes import process_start
from running import HANG


DAMAGED = ['12', 'null', '[1]', '"done"', '{"a": 1}', '{"iter": "7", "done": true}', '{"iter": 7, "do', '[' * 20_000,
           '{"iter": 1' + 400 * '0' + ', "done": true}', '{"iter": NaN, "done": true}', '\0\0\0', '\udcff\udcfe', '']


def test_a_process_is_known_by_its_start_too():
    process = subprocess.Popen(['sleep', str(HANG)])
    run = Run(pid=process.pid, start_time=process_start(process.pid))
    assert run.is_alive() and not Run(pid=process.pid, start_time='1').is_alive()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not run.is_alive(), 'a zombie, as nobody has fetched its exit code yet'
    process.wait()
    assert not run.is_alive() and not Run(pid=None).is_alive()


@pytest.mark.parametrize('damage', DAMAGED)
def test_what_a_run_has_come_to_is_read_from_the_lines_that_are_whole(tmp_path, damage):
    run = Run(state=State.RUNNING, started=0, max_iters=10, out_dir=str(tmp_path))
    last = ['{"iter": 4, "loss": 2.0, "ms": 500.0, "tok_s": 9.0}', '{"iter": 5, "stopped": true}']
    for lines, loss, stopped in (([damage], None, False), ([damage, last[0], damage], 2.0, False),
                                 ([damage, *last, damage], 2.0, True), ([*last, last[0], damage], 2.0, False)):
        text = '\n'.join(lines)
        (tmp_path / 'metrics.jsonl').write_bytes(text.encode(errors='surrogateescape'))
        assert run.progress()['loss'] == loss and run.ended('stopped') == stopped and not run.ended('done')
        assert 'loss 2.000' in run.brief() if loss else run.brief() == 'starting'
        assert run.outcome().startswith('best val loss not known')


def test_a_figure_that_is_none_is_not_shown(tmp_path):
    run = Run(state=State.RUNNING, started=0, max_iters=10, out_dir=str(tmp_path))
    line = '{"iter": 4, "loss": "2.0", "tok_s": [1], "ms": Infinity, "train_s": 1e999}'
    (tmp_path / 'metrics.jsonl').write_text(line)
    assert run.brief() == '4 of 10' and run.progress()['train_s'] is None


def test_files_that_cannot_be_read_now_are_named_and_nothing_ends(tmp_path):
    for name in ('metrics.jsonl', 'log.txt', '.lock'):
        (tmp_path / name).mkdir()
    run = Run(state=State.QUEUED, started=1, out_dir=str(tmp_path))
    state, text = run.describe({'a': run})
    assert state == State.QUEUED and text == f"[Errno 21] Is a directory: '{tmp_path}/metrics.jsonl'"
    assert run.brief() == run.outcome() == text == run.progress()['unreadable']
    assert not run.ended('done') and run.last_line() == 'it printed nothing'


def test_a_folder_with_an_impossible_name_has_a_row_of_its_own(tmp_path):
    run = Run(state=State.DONE, started=1, out_dir='x' * 300)
    assert 'File name too long' in run.describe({'a': run})[1]


def test_one_that_was_stopped_and_has_ended_is_not_said_to_be_resumed(tmp_path):
    run = Run(state=State.RUNNING, started=5, pid=1, start_time='gone', out_dir=str(tmp_path), wanted=State.STOPPED)
    assert run.describe({})[0] == State.STOPPED
    run.wanted = State.QUEUED
    assert run.describe({})[0] == 'interrupted'


def test_a_folder_that_was_removed_is_begun_again_and_one_that_cannot_be_made_starts_nothing(tmp_path):
    one = Experiment('a', [], str(tmp_path / 'a'), 1, [], {'max_iters': 5})
    run, begun = Run(), tmp_path / 'a' / '.begun'
    (tmp_path / 'a').touch()
    with pytest.raises(OSError):
        run.start(State.RUNNING, one)
    assert (run.state, run.started) == (State.QUEUED, None)
    os.unlink(tmp_path / 'a')
    for remove in (False, True):
        run.start(State.RUNNING, one)
        assert begun.exists()
        os.utime(begun, (5, 5))
        run.start(State.RUNNING, one)
        assert begun.stat().st_mtime == 5, 'what is there is resumed'
        shutil.rmtree(tmp_path / 'a')


def test_a_process_whose_start_could_not_be_recorded_is_recorded_later():
    manager = Manager.__new__(Manager)  # without its signal handlers
    manager.children = {'a': subprocess.Popen(['sleep', str(HANG)])}
    with manager.children['a'] as process:
        run = Run(state=State.RUNNING, started=time.time())
        manager.update('a', run)
        assert run.pid == process.pid and run.is_alive()
        process.kill()
