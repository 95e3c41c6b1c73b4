"""The runs in a queue's file, and the processes that they name."""
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from common.experiments.manager import Manager
from common.experiments.runs import Queue, Run, State, process_start
from running import HANG


DAMAGED = ['12', 'null', '[1]', '"done"', '{"a": 1}', '{"iter": "7", "done": true}', '{"iter": 7, "do', '[' * 20_000,
           '{"iter": 1' + 400 * '0' + ', "done": true}', '{"iter": NaN, "done": true}', '\0\0\0', '\udcff\udcfe', '']


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """The queue of mine.conf in an empty folder, with a results folder for its file."""
    monkeypatch.chdir(tmp_path)
    os.mkdir('results')
    return Queue('mine.conf')


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


def test_files_that_cannot_be_read_now_say_nothing_of_a_run(tmp_path):
    for name in ('metrics.jsonl', 'log.txt', '.lock'):
        (tmp_path / name).mkdir()
    run = Run(state=State.QUEUED, started=1, out_dir=str(tmp_path))
    assert run.describe({'a': run}) == (State.QUEUED, 'nothing saved') and not run.ended('done')
    assert run.last_line() == 'it printed nothing'


def test_a_process_whose_start_could_not_be_recorded_is_recorded_later():
    manager = Manager.__new__(Manager)  # without its signal handlers
    manager.children = {'a': subprocess.Popen(['sleep', str(HANG)])}
    with manager.children['a'] as process:
        run = Run(state=State.RUNNING, started=time.time())
        manager.update('a', run)
        assert run.pid == process.pid and run.is_alive()
        process.kill()


def test_the_file_of_an_earlier_version_is_read(queue):
    """It had no fields before they were used, and may have had others."""
    runs = {'a': {'state': 'queued', 'attempts': 0, 'not_before': 0.0, 'wanted': None, 'error': None, 'started': None,
                  'out_dir': 'results/a', 'after': []},
            'b': {'state': 'running', 'wanted': 'stopped', 'started': 5, 'pid': 7, 'colour': 'red'}}
    Path(queue.path).write_text(json.dumps(runs))
    assert queue.read() == {'a': Run(out_dir='results/a'),
                            'b': Run(state=State.RUNNING, wanted=State.STOPPED, started=5, pid=7)}


def test_what_is_written_is_read_again(queue):
    run = Run(state=State.SUBMITTED, out_dir='results/a', words=['config/toy.py'], job='7', slurm='PENDING')
    with queue.changing() as runs:
        runs['a'] = run
    assert queue.read() == {'a': run}
    assert json.load(open(queue.path)) == {'a': {**vars(run), 'state': 'submitted'}}


@pytest.mark.parametrize('runs, expected', [
    ({'a': {'state': 'lost'}}, "run 'a': state='lost' is not one of queued, running, submitted, done, stopped, failed"),
    ({'a': {}, 'b': {'wanted': 'lost'}}, "run 'b': wanted='lost' is not one of"),
    ({'a': {'state': None}}, "run 'a': state=None is not of type State"),
    ({'a': {'attempts': 'two'}}, "run 'a': attempts='two' is not of type int"),
    ({'a': {'started': '5'}}, "run 'a': started='5' is not of type int | float | None"),
    ({'a': []}, "run 'a'"), ([], '')])
def test_a_damaged_file_is_named_with_the_run_and_the_field(queue, runs, expected):
    Path(queue.path).write_text(json.dumps(runs))
    with pytest.raises(ValueError) as error:
        queue.read()
    assert 'results/mine.json is damaged' in str(error.value) and expected in str(error.value)
