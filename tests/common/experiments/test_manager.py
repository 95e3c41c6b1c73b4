"""What the manager takes up from a list that changes, without a process."""
import os
from pathlib import Path

import pytest

from common.experiments import experiment_list
from common.experiments.manager import Manager, signature
from common.experiments.runs import Run, State
from common.experiments.state_file import Queue
from running import ROOT

TOY = '--n_layer=1 --n_head=1 --n_embd=8 --dataset=toy'


def make_dataset(name):
    os.mkdir(name)
    for split in ('train', 'val'):
        Path(name, f'{split}.bin').write_bytes(bytes(4096))


@pytest.fixture
def manage(tmp_path, monkeypatch):
    """manage('a line', ...): the Manager of a list with these lines, which only notes in `started` what it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('signal.signal', lambda *args: None)
    monkeypatch.setattr('common.experiments.manager.PAUSE', -1)
    make_dataset('toy')

    def manage(*lines):
        write(*lines)
        manager = Manager(Queue('mine.conf'), [None], 1, ROOT, jobs=2)
        manager.experiments = experiment_list.read('mine.conf', ROOT)
        manager.path, manager.seen = 'mine.conf', signature('mine.conf')
        manager.started = []
        manager.start = lambda one, run: manager.started.append(one.name)
        return manager
    return manage


def write(*lines):
    Path('new').write_text('\n'.join(lines) + '\n')
    os.replace('new', 'mine.conf')


def names(manager):
    return [one.name for one in manager.experiments]


def test_a_mistake_keeps_no_other_line_from_being_taken_up_or_removed(manage, capsys):
    manager = manage(f'a: {TOY}', f'b: {TOY}')
    manager.update_all()
    with manager.queue.changing() as runs:  # as `remove b` does
        del runs['b']
        write(f'a: {TOY}', f'c: {TOY} --dataset=later', f'd: {TOY} after=c', f'e: {TOY}', f'f: {TOY} --nonsense=1')
    for _ in range(2):
        manager.update_all()
        assert names(manager) == list(manager.queue.read()) == ['a', 'e']
    said = capsys.readouterr().out
    assert said.count("mine.conf, line 2: dataset 'later' has no") == said.count('line 5: unknown setting') == 1
    make_dataset('later')
    manager.update_all()
    assert names(manager) == ['a', 'c', 'd', 'e'] and 'dataset' not in manager.mistakes
    write(f'a: {TOY}')
    manager.update_all()
    assert names(manager) == ['a'] and manager.mistakes == ''


def test_what_was_removed_is_not_started_though_the_list_cannot_be_read(manage):
    manager = manage(f'a: {TOY}', f'b: {TOY}')
    manager.update_all()
    with manager.queue.changing() as runs:
        del runs['b']
        Path('mine.conf').write_bytes(b'\xff\xff')
    manager.update_all()
    assert manager.start_all() and manager.started == ['a'] and list(manager.queue.read()) == ['a']


def test_a_line_that_could_not_be_taken_up_is_no_success(manage):
    manager = manage(f'a: {TOY}')
    with manager.queue.changing() as runs:
        runs['a'] = Run(state=State.DONE, started=5, out_dir='results/a')
    assert manager.work(manager.experiments, 'mine.conf', manager.seen) == 0
    write(f'a: {TOY}', 'b: --nonsense=1')
    assert manager.work(manager.experiments, 'mine.conf', manager.seen) == 1


def test_what_was_read_is_recorded_later_if_it_cannot_be_now(manage, monkeypatch):
    manager = manage(f'a: {TOY}')
    manager.update_all()
    write(f'a: {TOY}', f'b: {TOY}')
    os.mkdir('results/mine.json.tmp')
    with pytest.raises(OSError):
        manager.update_all()
    os.rmdir('results/mine.json.tmp')
    manager.update_all()
    assert list(manager.queue.read()) == ['a', 'b']


def test_the_queue_is_locked_once_for_all_that_are_started(manage, monkeypatch):
    manager = manage(*(f'x{i}: {TOY}' for i in range(20)))
    manager.update_all()
    locked, calls = Queue.locked, []
    monkeypatch.setattr(Queue, 'locked', lambda queue: calls.append(1) or locked(queue))
    assert manager.start_all() and manager.started == ['x0', 'x1'] and len(calls) == 1
    assert [name for name, run in manager.queue.read().items() if run.state == State.RUNNING] == ['x0', 'x1']
