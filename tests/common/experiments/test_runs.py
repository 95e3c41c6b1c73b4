"""The runs in a queue's file, and the processes that they name."""
import json
import os
import subprocess
from pathlib import Path

import pytest

from common.experiments.runs import Queue, Run, State, process_start
from running import HANG


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
