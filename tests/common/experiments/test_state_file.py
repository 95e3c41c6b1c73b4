"""The state file of a list: one for each, found again, and never lost when it is damaged."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import files
from common.experiments.experiment_list import Experiment
from common.experiments.runs import Run, State
from common.experiments.state_file import Damaged, Queue
from running import ROOT, ok, python

GOOD = {'a': {'state': 'done', 'started': 5}}


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """The queue of mine.conf in an empty folder, with a results folder for its file."""
    monkeypatch.chdir(tmp_path)
    os.mkdir('results')
    return Queue('mine.conf')


def use(path, *names):
    """Write a list, and let it have a run of each name. Returns where its state file is."""
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    queue = Queue(path)
    with queue.changing() as runs:
        runs.update({name: Run(out_dir=f'results/{name}', started=5) for name in names})
    return queue.path


def test_the_file_of_an_earlier_version_is_read(queue):
    """It had no fields before they were used, and may have had others."""
    runs = {'a': {'state': 'queued', 'attempts': 0, 'not_before': 0.0, 'wanted': None, 'error': None, 'started': None,
                  'out_dir': 'results/a', 'after': []},
            'b': {'state': 'running', 'wanted': 'stopped', 'started': 5, 'pid': 7, 'colour': 'red'}}
    Path(queue.path).write_text(json.dumps(runs))
    assert queue.read() == {'a': Run(out_dir='results/a'),
                            'b': Run(state=State.RUNNING, wanted=State.STOPPED, started=5, pid=7)}


def test_what_is_written_is_read_again(queue):
    run = Run(state=State.SUBMITTED, started=5, out_dir='results/a', words=['config/toy.py'], job='7', slurm='PENDING')
    with queue.changing() as runs:
        runs['a'] = run
    assert queue.read() == {'a': run} and run.listed_in == 'mine.conf'
    assert json.load(open(queue.path)) == {'a': {**vars(run), 'state': 'submitted'}}


def test_each_list_has_a_state_file_of_its_own(queue, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    lists = ['config/x.conf', 'x.conf', 'x.txt', 'lists/x.conf', 'lists_x.conf', str(elsewhere / 'x.conf'), '.x.conf',
             f'{"long" * 40}.conf', f'{"long" * 40}s.conf', f'{"긴" * 70}.conf']
    paths = [use(path, 'a') for path in lists]
    assert len(set(paths)) == len(lists) and paths[0] == 'results/x.json'
    assert not [path for path in paths if os.path.basename(path)[0] == '.' or len(path.encode()) > 220]
    assert [Queue(path).path for path in lists] == paths  # and finds it again


def test_one_list_by_several_names_has_one_state_file(queue, tmp_path):
    os.mkdir('config')
    path = use('config/x.conf', 'a')
    os.symlink('config/x.conf', 'link.conf')
    for name in ('./config/x.conf', 'config/../config/x.conf', tmp_path / 'config' / 'x.conf', 'link.conf'):
        assert Queue(str(name)).path == path


@pytest.mark.parametrize('path, name', [('config/x.conf', 'x'), ('x.conf', 'x'), ('lists/x.conf', 'lists_x'),
                                        ('../q.conf', '.._q'), (f'{"long" * 40}.conf', 'long' * 40)])
def test_a_state_file_of_an_earlier_version_is_found(queue, path, name):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    Path(f'results/{name}.json').write_text(json.dumps(GOOD))
    with Queue(path).changing() as runs:
        assert runs['a'].state == State.DONE
    assert Queue(path).read()['a'].listed_in
    other = use('config/x.conf' if path == 'x.conf' else 'x.conf', 'b')
    assert other != f'results/{name}.json'


def test_a_list_and_its_results_can_be_moved(queue, tmp_path):
    path = use('x.conf', 'a')
    os.makedirs('config')
    os.rename('x.conf', 'config/x.conf')
    assert Queue('config/x.conf').path == path
    os.mkdir('new')
    for name in ('config', 'results'):
        os.rename(name, f'new/{name}')
    os.chdir('new')
    assert 'a' in Queue('config/x.conf').read()


def test_the_hint_names_the_file_of_each_other_list(queue):
    for path in ('config/x.conf', 'lists/y.conf'):
        use(path, 'a')
    Path('old.conf').touch()
    Path('results/old.json').write_text('{}')  # of an earlier version
    Path('results/folder.json').mkdir()
    assert queue.others() == ('; other lists have run here: config/x.conf, lists/y.conf, old.conf; '
                              '--list=FILE names one')


@pytest.mark.parametrize('out_dir', ['results/a', 'results/a/b', 'Results/A'])
def test_a_folder_that_another_list_has_used_is_refused_by_its_name(queue, out_dir):
    use('x.conf', 'a')
    Path('results/broken.json').write_text('[')
    assert 'of the list x.conf' in queue.clash(Experiment('n', [], out_dir, 1, []))
    assert queue.clash(Experiment('n', [], 'results/b', 1, [])) is None


@pytest.mark.parametrize('content, expected', [
    ('', 'it is empty'), ('[]', 'it is not a JSON object'), ('null', 'it is not'),
    ('{"a": {"state": "do', 'Unterminated'), ('{"a": []}', "run 'a': [] is not a JSON object"),
    ('{"a": 5}', "run 'a'"), ('[' * 100_000, 'nested too deeply'),
    ('{"a": {"state": "lost"}}', "run 'a': state='lost' is not one of queued, running, submitted, done, stopped, fail"),
    ('{"a": {}, "b": {"wanted": "lost"}}', "run 'b': wanted='lost' is not one of"),
    ('{"a": {"state": null}}', "run 'a': state=None is not of type State"),
    ('{"a": {"attempts": "two"}}', "run 'a': attempts='two' is not of type int"),
    ('{"a": {"started": "5"}}', "run 'a': started='5' is not of type int | float | None"),
    ('{"a": {"started": NaN}}', 'out of range'), ('{"a": {"not_before": 1e999}}', 'out of range'),
    (f'{{"a": {{"attempts": 1{"0" * 30}}}}}', 'attempts=10000000000000000000 is out of range'),
    ('{"a": {"state": "running"}}', 'started is missing'), ('{"a": {"after": [1]}}', 'after='),
    ('{"a": {"state": "submitted", "started": 5}}', 'job is missing'), ('{"a": {"out_dir": "\\u0000"}}', 'out_dir='),
    ('{"a": {"out_dir": "\\ud800"}}', 'out_dir='), ('\udcff\udcfe', 'utf-8'), ('\0' * 50, 'Expecting value')])
def test_a_damaged_file_is_named_and_stays_as_it_is(queue, content, expected):
    content = content.encode(errors='surrogateescape')
    Path(queue.path).write_bytes(content)
    for attempt in (queue.read, queue.changing().__enter__):
        with pytest.raises(Damaged) as error:
            attempt()
        assert str(error.value).startswith('results/mine.json is damaged (') and expected in str(error.value)
        assert 'python run_manager.py repair --list=mine.conf' in str(error.value)
    assert Path(queue.path).read_bytes() == content


def test_a_list_that_was_renamed_is_told_how_to_keep_its_queue(queue):
    use('q.conf', 'a')
    one = Experiment('a', [], 'results/a', 1, [])
    assert 'mv' not in queue.clash(one), 'q.conf is still there'
    os.rename('q.conf', 'mine.conf')
    assert queue.clash(one).endswith('; if this list was q.conf: mv results/q.json results/mine.json')
    os.rename('results/q.json', 'results/mine.json')
    assert Queue('mine.conf').clash(one) is None and 'a' in Queue('mine.conf').read()


def test_a_run_is_found_again_by_its_process_with_the_start_that_its_mark_says(queue, monkeypatch):
    monkeypatch.setattr('common.processes.oldest', lambda out_dir: (7, '123', 5.25))
    Path(queue.path).write_text('')
    run = queue.repair([found('a')])[0]['a']
    assert (run.state, run.pid, run.start_time, run.started) == (State.RUNNING, 7, '123', 5.25)


def test_a_name_that_is_not_known_is_told_with_those_that_are(queue):
    Path('mine.conf').write_text('b: --seed=1 after=a\nc --seed=2\n')
    runs = {'a': Run()}
    with pytest.raises(ValueError, match="no experiment is called 'x'; known: a, b$"):
        queue.run(runs, 'x')
    assert list(runs) == ['a'] and queue.run(runs, 'b').after == ['a'] and list(runs) == ['a', 'b']


def found(name, state=None, **settings):
    """An experiment whose folder the queue has begun, and which has come to `state`."""
    one = Experiment(name, [], f'results/{name}', 1, [], dict(max_iters=10, **settings))
    if state:
        Run().start(State.RUNNING, one)
        line = '{"iter": 9, "done": true}\n' if state == 'done' else '{"iter": 4}\n'
        Path(one.out_dir, 'metrics.jsonl').write_text(line)
    return one


def test_repair_keeps_the_damaged_file_and_finds_the_runs_by_their_folders(queue):
    content = '{"x": {"state": "failed", "started": 5, "error": "why"}, "y": {"state": "lost"}, "done": 7}'
    Path(queue.path).write_text(content)
    experiments = [found('done', 'done'), found('half', 'stopped'), found('alive', 'running'), found('new')]
    (Path('results') / 'by hand').mkdir()
    lock = files.lock('results/alive/.lock')
    runs, aside = queue.repair(experiments)
    lock.release()
    assert aside == 'results/mine.json.damaged' and Path(aside).read_text() == content
    assert {name: str(run.state) for name, run in queue.read().items()} == {
        'x': 'failed', 'done': 'done', 'half': 'queued', 'alive': 'running', 'new': 'queued'}
    assert queue.read() == runs and runs['half'].started and not runs['new'].started and runs['x'].error == 'why'
    with pytest.raises(ValueError, match='results/mine.json is not damaged'):
        queue.repair(experiments)
    Path(queue.path).write_text('')
    assert queue.repair(experiments)[1] == 'results/mine.json.damaged-2'


def test_a_look_at_the_queue_never_stops_a_manager_from_starting(queue):
    """has_manager() holds the lock for an instant."""
    Path('look.py').write_text('import sys\nfrom common.experiments.state_file import Queue\nq = Queue("mine.conf")\n'
                               'print("there", flush=True)\nwhile True:\n    q.has_manager()\n')
    env = dict(os.environ, PYTHONPATH=ROOT)
    with subprocess.Popen([sys.executable, 'look.py'], env=env, stdout=subprocess.PIPE) as looking:
        looking.stdout.readline()
        for _ in range(300):
            queue.lock_for_manager()
            queue.lock.release()
        looking.kill()
    queue.lock_for_manager()
    Path('ask.py').write_text('from common.experiments.state_file import Queue\nQueue("mine.conf").lock_for_manager()')
    again = python('ask.py', cwd=os.getcwd(), PYTHONPATH=ROOT)
    assert 'another run_manager.py is running for this list already' in again.stderr
    Path('ask.py').write_text('from common.experiments.state_file import Queue\n'
                              'print(Queue("mine.conf").has_manager())')
    assert ok(python('ask.py', cwd=os.getcwd(), PYTHONPATH=ROOT)).stdout == 'True\n'
    queue.lock.release()
