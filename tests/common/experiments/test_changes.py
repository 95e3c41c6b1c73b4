"""What a user changes in a queue, without a process."""
import os
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from common import files
from common.experiments import changes, slurm
from common.experiments.runs import Run, State
from common.experiments.state_file import Queue
from running import ROOT
from test_manager import make_dataset

WORDS = ['--n_layer=1', '--n_head=1', '--n_embd=8', '--dataset=toy', '--wandb_project=x y', '--out_dir=results/a']


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """The queue of mine.conf, in whose file is a run a that failed, but in whose list there is only b."""
    monkeypatch.chdir(tmp_path)
    make_dataset('toy')
    Path('mine.conf').write_text('b: --n_layer=1 --n_head=1 --n_embd=8 --dataset=toy\n')
    queue = Queue('mine.conf')
    with queue.changing() as runs:
        runs['a'] = Run(state=State.FAILED, started=5, out_dir='results/a', words=WORDS)
    return queue


def options(**values):
    return Namespace(**{'list': 'mine.conf', 'root': ROOT, 'failed': False, 'now': False, **values})


def test_a_run_whose_line_is_gone_is_not_retried_but_told_how_to_add_it_again(queue, capsys):
    with pytest.raises(ValueError, match='the line of a is no longer in mine.conf') as error:
        changes.retry(options(name='a'), queue)
    changes.retry(options(name=None, failed=True), queue)
    assert 'nothing in the list has failed' in capsys.readouterr().out and queue.read()['a'].state == State.FAILED
    command = str(error.value).partition('run_manager.py add --list=mine.conf ')[2]
    with pytest.raises(ValueError, match='has run already, with another line'):
        changes.add(options(words=[*shlex.split(command), '--seed=2']), queue)
    changes.add(options(words=shlex.split(command)), queue)
    changes.retry(options(name=None, failed=True), queue)
    assert queue.read()['a'].state == State.QUEUED and queue.read()['a'].started == 5


@pytest.mark.parametrize('state', [State.QUEUED, State.DONE])
def test_what_another_process_trains_is_not_removed_and_no_stop_is_advised(queue, state):
    with queue.changing() as runs:
        runs['a'].state = state
    os.makedirs('results/a')
    lock = files.lock('results/a/.lock')
    with pytest.raises(ValueError, match='another process trains in results/a; remove a when that has ended$'):
        changes.remove(options(name='a'), queue)
    lock.release()
    changes.remove(options(name='a'), queue)


def test_a_line_can_be_removed_though_another_one_has_a_mistake(queue):
    with open('mine.conf', 'a') as f:
        f.write('c: --nonsense=1\n')
    changes.remove(options(name='b'), queue)
    assert Path('mine.conf').read_text() == 'c: --nonsense=1\n'


def test_slurm_is_asked_before_the_queue_is_locked(queue, monkeypatch):
    with queue.changing() as runs:
        vars(runs['a']).update(state=State.SUBMITTED, job='7')

    def call(*words):
        assert words[0] == 'scancel' or not files.is_locked(f'{queue.path}.lock')
        return '7|RUNNING\n' if words[0] == 'squeue' else ''
    monkeypatch.setattr(slurm, 'call', call)
    changes.stop(options(name='a'), queue)
    assert queue.read()['a'].state == State.STOPPED


def test_a_run_that_is_just_starting_is_named_with_what_to_type(queue, monkeypatch):
    with queue.changing() as runs:
        runs['a'].state = State.RUNNING
    monkeypatch.setattr(queue, 'has_manager', lambda: True)
    with pytest.raises(ValueError, match='a is just starting, .*: python run_manager.py status --list=mine.conf$'):
        changes.stop(options(name='a'), queue)
