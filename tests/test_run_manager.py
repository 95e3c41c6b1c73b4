"""
run_manager.py as a user runs it, with a stand-in for train.py that has its settings and exit codes but learns nothing
and needs no torch. The last test uses the real train.py.
"""
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest

import run_manager
from common import files
from common.experiments import references
from common.experiments.runs import Run
from common.experiments.state_file import Queue
from common.processes import process_start
from common.settings import command_line
from conftest import TOY, read_metrics, slow
from running import HANG, ROOT, ok, python

# wandb_run_name says how the stand-in behaves. It saves its state at each iteration. One that `holds` waits before
# iteration 5 until it is stopped or a file `go` appears.
STAND_IN = '''
import json, signal, time
stopped = []
signal.signal(signal.SIGTERM, lambda *args: stopped.append(1))
os.makedirs(out_dir, exist_ok=True)
last = os.path.join(out_dir, 'last.pt')
first = int(open(last).read()) if init_from == 'auto' and os.path.exists(last) else 0
log = open(os.path.join(out_dir, 'metrics.jsonl'), 'a')
while os.environ.get('RANK', '0') != '0':  # under torchrun rank 0 does all the work
    if stopped or '"done"' in open(log.name).read():
        sys.exit(75 if stopped else 0)
    time.sleep(0.02)
print('GPU', os.environ.get('CUDA_VISIBLE_DEVICES'), 'from', first, flush=True)
def write(**line):
    print(json.dumps(line), file=log, flush=True)
if wandb_run_name == 'mistake':
    print('train.py: n_head=0 is below 1', flush=True)
    sys.exit(2)
if wandb_run_name == 'fails' or (wandb_run_name == 'fails once' and first == 0 and not os.path.exists(out_dir + '/x')):
    open(out_dir + '/x', 'w')
    sys.exit('no such luck')
for i in range(first, max_iters):
    while wandb_run_name == 'holds' and i == 5 and not stopped and not os.path.exists('go'):
        time.sleep(0.01)
    write(iter=i, loss=2.0, ms=20.0, tok_s=10.0, tokens=i, train_s=0.0)
    open(last + '.tmp', 'w').write(str(i + 1))
    os.replace(last + '.tmp', last)
    if stopped or (wandb_run_name == 'preempted' and i == 3):
        write(iter=i + 1, stopped=True, train_s=0.0)
        sys.exit(75)
write(iter=max_iters, val_loss=1.5, train_loss=1.4, val_ppl=4.5, val_acc=0.5, tokens=max_iters, train_s=1.0)
write(iter=max_iters, done=True, best_val_loss=1.5, train_s=1.0)
'''


HOLDS = '--wandb_run_name=holds'


class Manager:
    """run_manager.py in a folder: manage('status', ...) runs it with these words to its end."""

    def __init__(self, folder):
        self.folder, self.results, self.started = folder, folder / 'results', []

    def __call__(self, *words, **env):
        return python('run_manager.py', *words, cwd=self.folder, **env)

    def shell(self, line):
        """Run a line of bash in which $manage stands for run_manager.py; returns the CompletedProcess."""
        env = dict(os.environ, manage=f'{sys.executable} run_manager.py')
        return subprocess.run(['bash', '-c', line], cwd=self.folder, env=env, capture_output=True, text=True,
                              timeout=HANG)

    def start(self, *words, stdout=subprocess.PIPE, **env):
        """A process that works through the list."""
        words = [sys.executable, 'run_manager.py', 'run', *words]
        self.started.append(subprocess.Popen(words, cwd=self.folder, env={**os.environ, **env}, text=True,
                                             stdout=stdout, stderr=subprocess.STDOUT))
        return self.started[-1]

    def hold(self, *lines, settings='', words=(), **options):
        """start() on a list in which `a` comes first and holds; returns when it does."""
        self.write(f'a: config/toy.py {HOLDS} {settings}', *lines)
        process = self.start(*words, **options)
        wait_for(lambda: self.holds('a') and self.json()['a']['pid'])
        return process

    def holds(self, name):
        path = self.results / name / 'last.pt'
        return path.exists() and path.read_text() == '5'

    def go(self):
        """Let the experiments that hold go on, now and later."""
        (self.folder / 'go').touch()

    def write(self, *lines):
        """Replace the list."""
        (self.folder / 'config' / 'new').write_text('\n'.join(lines) + '\n')
        os.replace(self.folder / 'config' / 'new', self.folder / 'config' / 'experiment_list.conf')

    def json(self):
        path = self.results / 'experiment_list.json'
        return json.loads(path.read_text()) if path.exists() else {}

    def states(self):
        return {name: run['state'] for name, run in self.json().items()}

    def log(self, name='a'):
        return (self.results / name / 'log.txt').read_text()

    def starts(self, name='a'):
        """The command lines in the log of a run."""
        return [line for line in self.log(name).splitlines() if line[0] == '$']

    def resumed(self):
        """Whether each start of `a` was to resume it."""
        return [line.endswith('--init_from=auto') for line in self.starts()]

    def program(self, name, text):
        """Put an executable into a folder; returns the PATH that begins with it."""
        path = self.folder / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return f'{path.parent}:{os.environ["PATH"]}'


@pytest.fixture
def manage(tmp_path):
    """The Manager of a folder with run_manager.py, the stand-in for train.py, and a dataset."""
    for name in ('run_manager.py', 'configurator.py'):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    shutil.copytree(os.path.join(ROOT, 'common'), tmp_path / 'common', ignore=shutil.ignore_patterns('__pycache__'))
    module = tmp_path / 'common' / 'experiments' / 'manager.py'
    source = module.read_text()
    for name, value in (('PAUSE', 0.2), ('LOOK', 0.05), ('AT_ONCE', HANG)):  # so every failure counts as one at once
        source, changes = re.subn(rf'^{name} = \S+', f'{name} = {value}', source, flags=re.MULTILINE)
        assert changes == 1
    module.write_text(source)
    settings = re.match(r'(?s).*?\nexec\(open\(.*?\n', open(os.path.join(ROOT, 'train.py')).read())[0]
    (tmp_path / 'train.py').write_text(settings + STAND_IN)
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config' / 'toy.py').write_text('max_iters = 10\nn_embd = 8\nn_head = 1\ndataset = "toy"\n')
    (tmp_path / 'config' / 'there.py').write_text('out_dir = "there"\n')
    (tmp_path / 'data' / 'toy').mkdir(parents=True)
    for split in ('train', 'val'):
        (tmp_path / 'data' / 'toy' / f'{split}.bin').write_bytes(bytes(4096))
    manager = Manager(tmp_path)
    yield manager
    for process in manager.started:
        with process:
            process.kill()
    manager.go()
    for values in manager.json().values():
        if Run(**values).is_alive():
            os.kill(values['pid'], signal.SIGKILL)


def wait_for(condition):
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, 'it never came'
        time.sleep(0.02)


def read_until(process, text):
    """The output of a process up to the line with `text`."""
    output = ''
    while text not in output:
        line = process.stdout.readline()
        assert line, f'{text!r} never came: {output}'
        output += line
    return output


def finish(process):
    """The rest of the output of a process, until it ends."""
    output = process.stdout.read()  # not communicate(), which misses what read_until() left in the buffer
    process.wait(timeout=HANG)
    return output


def test_a_list_is_worked_through_in_its_order_but_for_what_waits(manage):
    manage.write('# three', 'b: config/toy.py after=c', 'a: config/toy.py --seed=2   # the first', '',
                 'c: config/toy.py', 'config/toy.py --seed=3')
    output = ok(manage('run')).stdout
    assert re.findall(r'(\S+): started', output) in (['a', 'c', 'b', 'toy-seed=3'], ['a', 'c', 'toy-seed=3', 'b'])
    assert set(manage.states().values()) == {'done'} and 'best val loss 1.5000, 1s of training' in output
    assert manage.starts() == ['$ python train.py config/toy.py --seed=2 --out_dir=results/a']
    assert manage('run').returncode == 0 and len(manage.starts()) == 1, 'what is done stays done'


def test_an_experiment_never_runs_beside_another_in_one_slot(manage):
    manage.write('a: config/toy.py', 'b: config/toy.py', 'c: config/toy.py')
    output = manage('run').stdout
    assert re.findall(r'(\w): (started|done)', output) == [(name, event) for name in 'abc'
                                                           for event in ('started', 'done')]


def test_each_gpu_has_its_own_experiment(manage):
    path = manage.program('nvidia-smi', '#!/bin/sh\necho "GPU 0: a Laptop GPU (UUID)"; echo "GPU 1: stand-in"\n')
    manage.write(f'a: config/toy.py {HOLDS}', f'b: config/toy.py {HOLDS}', 'c: config/toy.py')
    manager = manage.start('--gpus=0,1', PATH=path)
    wait_for(lambda: all(map(manage.holds, 'ab')))  # at once
    runs = manage.json()
    assert {runs['a']['slot'], runs['b']['slot']} == {'0', '1'} and runs['c']['state'] == 'queued'
    manage.go()
    output = finish(manager)
    assert manager.returncode == 0 and set(manage.states().values()) == {'done'}, output
    assert 'GPU 1' in manage.log('b')
    assert 'knows 2 GPUs' in manage('run', '--gpus=2', PATH=path).stderr
    assert 'not like 0,1' in manage('run', '--gpus=a', PATH=path).stderr


def test_what_fails_is_tried_again_twice(manage):
    manage.write('fine: config/toy.py', 'bad: config/toy.py --wandb_run_name=fails',
                 'after: config/toy.py after=bad', 'unlucky: config/toy.py --wandb_run_name="fails once"')
    done = manage('run')
    assert done.returncode == 1
    assert manage.states() == {'fine': 'done', 'bad': 'failed', 'after': 'queued', 'unlucky': 'done'}, done.stdout
    assert len(manage.starts('bad')) == 3 and len(manage.starts('unlucky')) == 2
    status = manage('status').stdout
    assert re.search('(?m)^bad +failed +no such luck$', status)
    assert re.search(r'(?m)^after +queued +after bad \(failed\)$', status)
    manage.write('bad: config/toy.py', 'after: config/toy.py after=bad')
    assert 'bad is in the queue again' in manage('retry', '--failed').stdout
    assert manage('run').returncode == 0 and manage.states()['after'] == 'done'


def test_three_that_fail_at_once_end_the_queue(manage):
    manage.write(*(f'{name}: config/toy.py --wandb_run_name=fails' for name in 'abcd'))
    done = manage('run')
    assert done.returncode == 1
    assert f'three in a row failed within {HANG} seconds; the last said: no such luck' in done.stdout
    assert set(re.findall(r'(\w): started', done.stdout)) == set('abc') and manage.states()['d'] == 'queued'


def test_what_depends_on_a_failure_indirectly_is_not_waited_for(manage):
    manage.write('a: config/toy.py --wandb_run_name=fails', 'b: config/toy.py after=a', 'c: config/toy.py after=b')
    assert manage('run').returncode == 1 and manage.states() == {'a': 'failed', 'b': 'queued', 'c': 'queued'}


def test_an_older_run_in_the_folder_is_not_taken_for_this_one(manage):
    folder = manage.results / 'a'
    folder.mkdir(parents=True)
    (folder / 'last.pt').write_text('7')
    (folder / 'metrics.jsonl').write_text('{"iter": 10, "done": true}\n')
    manage.write('a: config/toy.py --wandb_run_name="fails once"')
    assert manage('run').returncode == 0 and manage.resumed() == [False, False]


def test_a_line_that_changes_while_it_runs_changes_nothing(manage):
    manager = manage.hold()
    manage.write(f'a: config/toy.py {HOLDS} --out_dir=elsewhere', 'b: config/toy.py')
    wait_for(lambda: 'b' in manage.json())  # the list was read again
    manage.go()
    finish(manager)
    assert manage.states() == {'a': 'done', 'b': 'done'} and not (manage.folder / 'elsewhere').exists()
    assert 'its line has changed since it was done' in manage('run').stdout


def test_what_cannot_be_started_fails_alone(manage):
    manage.write('a: config/toy.py', 'b: config/toy.py')
    (manage.results / 'a' / 'log.txt').mkdir(parents=True)
    assert manage('run').returncode == 1
    assert manage.states() == {'a': 'failed', 'b': 'done'} and 'not started' in manage.json()['a']['error']
    manage.write('c: config/toy.py --wandb_project=x\0y', 'b: config/toy.py')
    assert manage('run').returncode == 1 and 'null byte' in manage.json()['c']['error']


@pytest.mark.parametrize('stdout', ['>/dev/full 2>&1', slow('>/dev/full'), slow('>&- 2>&-'), slow('| true')])
def test_output_that_cannot_be_written_ends_nothing(manage, stdout):
    manage.write('a: config/toy.py', 'b: config/toy.py')
    for words in ('run', 'status', 'status --json', 'logs a -f', 'retry a'):
        done = manage.shell(f'$manage {words} {stdout}; exit ${{PIPESTATUS[0]}}')
        assert done.returncode == 0 and 'Traceback' not in done.stderr, (words, done.stderr)
        assert 'done' in manage.states()['b']


def test_a_terminal_that_goes_away_ends_nothing(manage):
    terminal, inner = pty.openpty()
    manager = manage.hold('b: config/toy.py', stdout=inner)
    os.close(inner)
    assert b'a: started' in os.read(terminal, 2**16)
    os.close(terminal)
    manage.go()
    assert manager.wait(timeout=HANG) == 0 and manage.states() == {'a': 'done', 'b': 'done'}


def test_a_terminal_that_is_not_utf_8_ends_nothing(manage):
    manage.write('하나: config/toy.py')
    for words, expected in ((['run'], '\\ud558\\ub098: started'), (['status'], '\\ud558\\ub098  done'),
                            (['logs', '하나'], 'results/\\ud558\\ub098')):
        assert expected in ok(manage(*words, PYTHONIOENCODING='ascii')).stdout


def test_following_a_log_ends_with_its_reader(manage):
    """Though the experiment prints nothing more."""
    manage.hold()
    done = manage.shell('$manage logs a -f | head -1')
    assert done.stdout.startswith('$ python train.py config/toy.py') and not done.stderr


def test_a_log_on_a_full_disk_ends_nothing(manage):
    manage.write('a: config/toy.py', 'b: config/toy.py')
    (manage.results / 'a').mkdir(parents=True)
    (manage.results / 'a' / 'log.txt').symlink_to('/dev/full')
    ok(manage('run'))
    assert manage.states() == {'a': 'done', 'b': 'done'} and manage.json()['a']['attempts'] == 0


def test_a_state_file_that_cannot_be_written_now_is_waited_for_and_nothing_is_forgotten(manage):
    manager = manage.hold('b: config/toy.py')
    before = manage.json()
    in_its_way = manage.results / 'experiment_list.json.tmp'
    in_its_way.mkdir()  # where a new file is written first
    os.kill(before['a']['pid'], signal.SIGKILL)
    output = read_until(manager, 'trying again')
    assert manage.json() == before
    in_its_way.rmdir()
    manage.go()
    output += finish(manager)
    assert manager.returncode == 0 and manage.states() == {'a': 'done', 'b': 'done'}, output
    assert manage.json()['a']['attempts'] == 1 and manage.resumed() == [False, True]  # it is known how it ended


def test_a_state_file_that_cannot_be_read_now_is_not_taken_for_an_empty_one(manage):
    manager = manage.hold('b: config/toy.py')
    path, aside = manage.results / 'experiment_list.json', manage.results / 'aside'
    path.rename(aside)
    path.mkdir()
    output = read_until(manager, 'trying again')
    for words in ('status', 'stop a', 'retry a', 'logs a', 'run --dry_run'):
        done = manage(*words.split())
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and path.is_dir(), done.stderr
    path.rmdir()
    aside.rename(path)
    manage.go()
    output += finish(manager)
    assert manage.states() == {'a': 'done', 'b': 'done'} and len(manage.starts()) == 1, output


@pytest.mark.slow
def test_a_state_file_that_is_damaged_while_the_manager_works_can_be_repaired_beside_it(manage):
    manager = manage.hold('b: config/toy.py')
    (manage.results / 'experiment_list.json').write_text('')
    output = read_until(manager, 'run_manager.py repair; trying again')
    assert re.search('(?m)^a +running', ok(manage('repair')).stdout)
    manage.go()
    output += finish(manager)
    assert manage.states() == {'a': 'done', 'b': 'done'} and len(manage.starts()) == 1, output


def test_an_environment_left_by_torchrun_reaches_no_experiment(manage):
    with open(manage.folder / 'train.py', 'a') as f:
        f.write('print("set:", sorted(key for key in os.environ if "RANK" in key or "WORLD" in key or "MASTER" in key '
                'or "ELASTIC" in key))\n')
    manage.write('a: config/toy.py')
    left = dict(RANK='0', LOCAL_RANK='', WORLD_SIZE='abc', LOCAL_WORLD_SIZE='2', MASTER_ADDR='gone', MASTER_PORT='x',
                TORCHELASTIC_RUN_ID='none')
    ok(manage('run', **left))
    assert 'set: []' in manage.log()
    for words in (['status'], ['logs', 'a'], ['run', '--dry_run']):
        assert ok(manage(*words, **dict(left, RANK='1'))).stderr == ''


def test_a_damaged_metrics_file_ends_nothing(manage):
    manager = manage.hold('b: config/toy.py')
    metrics = manage.results / 'a' / 'metrics.jsonl'
    with open(metrics, 'ab') as f:
        f.write(b'12\nnull\n[1]\n{"a": 1}\n"done"\n{"iter": 4, "loss": "low", "ms": null}\n\xff\0\0\n{"iter": 4, "lo')
    assert re.search('(?m)^a +running .* 4 of 10, loss 2.000', ok(manage('status')).stdout)
    assert json.loads(ok(manage('status', '--json')).stdout)[0]['loss'] == 2.0
    with open(metrics, 'a') as f:
        f.write('\n')
    manage.go()
    output = finish(manager)
    assert manager.returncode == 0 and manage.states() == {'a': 'done', 'b': 'done'}, output


def test_a_home_folder_in_a_path_is_meant(manage):
    (manage.folder / 'mine.conf').write_text('a: config/toy.py --out_dir=~/of-a\n')
    ok(manage('run', '--list=~/mine.conf', HOME=str(manage.folder)))
    assert (manage.folder / 'of-a' / 'log.txt').exists() and not (manage.folder / '~').exists()
    assert re.search('(?m)^a +done', ok(manage('status', '--list=~/mine.conf', HOME=str(manage.folder))).stdout)
    done = manage('status', '--list=')
    assert done.returncode == 2 and "--list='' names no file" in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_a_command_that_is_printed_can_be_pasted(manage):
    (manage.folder / 'my lists').mkdir()
    (manage.folder / 'my lists' / 'one.conf').write_text("a: config/toy.py --out_dir='of a'\n")
    never = manage('report', '--list=my lists/one.conf').stderr
    assert "start it with python run_manager.py run --list='my lists/one.conf', or" in never
    for words in (['status'], ['retry', 'a']):
        said = manage(*words, '--list=my lists/one.conf')
        command = re.search('python run_manager.py( run.*)$', said.stdout, re.MULTILINE)[1]
        ok(manage.shell(f'$manage {command}'))
    assert (manage.folder / 'of a' / 'log.txt').read_text().count('$ python') == 2


def test_a_preempted_run_goes_on_and_that_is_no_failure(manage):
    manage.write('a: config/toy.py --wandb_run_name=preempted --max_iters=30')
    assert manage('run').returncode == 0 and manage.json()['a']['attempts'] == 0
    assert manage.resumed() == [False, True] and 'from 4' in manage.log()


@pytest.mark.slow
def test_a_run_that_was_stopped_under_torchrun_goes_on(manage):
    """torchrun then exits with 1, as after a failure."""
    manager = manage.hold(words=['--nproc_per_node=2'])
    os.kill(manage.json()['a']['pid'], signal.SIGTERM)
    output = finish(manager)
    assert 'goes on from its checkpoint' in output and manage.states() == {'a': 'done'}, output
    assert 'torch.distributed.run' in manage.starts()[0] and manage.resumed()[1]


@pytest.mark.slow
def test_where_nothing_has_run_the_lists_that_have_run_are_named(manage):
    manage.write('a: config/toy.py')
    (manage.folder / 'mine.conf').write_text('b: config/toy.py --max_iters=1\n')
    assert 'other lists' not in manage('status').stdout
    assert manage('run', '--list=mine.conf').returncode == 0
    assert '; other lists have run here: mine.conf; --list=FILE names one' in manage('status').stdout
    assert "no experiment is called 'b'; known: a; other lists have run here: mine.conf" in manage('logs', 'b').stderr
    assert 'other lists' not in manage('status', '--list=mine.conf').stdout


def test_a_killed_manager_finds_its_run_alive(manage):
    with manage.hold('b: config/toy.py') as first:
        first.kill()
    assert 'no manager is running for this list' in manage('status').stdout
    second = manage.start()
    wait_for(lambda: 'no manager is running' not in manage('status').stdout)
    manage.go()
    output = finish(second)
    assert second.returncode == 0 and re.findall(r'(\S+): started', output) == ['b'], output
    assert len(manage.starts()) == 1


@pytest.mark.slow
def test_a_killed_manager_goes_on_with_a_run_that_died_too(manage):
    with manage.hold() as first:
        first.kill()
    os.kill(manage.json()['a']['pid'], signal.SIGKILL)
    wait_for(lambda: re.search('(?m)^a +interrupted', manage('status').stdout))
    manage.go()
    assert manage('run').returncode == 0 and manage.resumed() == [False, True]
    assert manage.states() == {'a': 'done'} and manage.json()['a']['attempts'] == 0


def test_a_manager_killed_between_starting_and_recording_it_loses_nothing(manage):
    manage.write('a: config/toy.py --max_iters=5')
    manage.results.mkdir()
    run = Run(state='running', started=time.time() - 2 * HANG, max_iters=5, out_dir='results/a')
    (manage.results / 'experiment_list.json').write_text(json.dumps({'a': vars(run)}))
    assert manage('run').returncode == 0 and manage.states() == {'a': 'done'}


def test_one_manager_at_a_time(manage):
    manage.hold()
    other = manage('run')
    assert other.returncode == 2 and 'another run_manager.py is running for this list already' in other.stderr


def test_lines_may_be_added_while_it_works_and_a_wrong_one_does_no_harm(manage):
    manager = manage.hold()
    manage.write(f'a: config/toy.py {HOLDS}', 'b: config/toy.py --max_itres=3')
    output = read_until(manager, 'max_itres')
    manage.write('b: config/toy.py', f'a: config/toy.py {HOLDS}')
    wait_for(lambda: 'b' in manage.json())
    assert manage('stop', 'a').returncode == 0
    output += finish(manager)
    assert manage.states() == {'a': 'stopped', 'b': 'done'}
    assert output.count("unknown setting --max_itres=3; did you mean max_iters") == 1


def test_stop_saves_and_retry_resumes(manage):
    manager = manage.hold('b: config/toy.py', settings='--max_iters=1000')
    assert manage('stop', 'a').returncode == 0
    finish(manager)
    assert manage.states() == {'a': 'stopped', 'b': 'done'}
    assert (manage.results / 'a' / 'last.pt').read_text() == '6'
    manage.write('a: config/toy.py --max_iters=11', 'b: config/toy.py')
    assert manage('retry', 'a').returncode == 0 and manage('run').returncode == 0
    assert 'from 6' in manage.log()
    assert manage('retry', 'a').returncode == 0 and manage('run').returncode == 0
    assert not manage.resumed()[-1], 'what was done begins anew'
    manage.write('a: config/toy.py --init_from=auto', 'b: config/toy.py')  # even if its own line says auto
    assert manage('retry', 'a').returncode == 0 and manage('run').returncode == 0
    assert manage.starts()[-1].endswith('--init_from=scratch')
    assert manage('stop', 'a').returncode == 2 and manage('retry', 'nobody').returncode == 2
    assert 'nothing in the list has failed' in manage('retry', '--failed').stdout


@pytest.mark.parametrize('times, expected', [(1, 'done'), (2, 'queued')])
def test_ctrl_c_once_lets_runs_finish_and_twice_stops_them(manage, times, expected):
    manager = manage.hold('b: config/toy.py')
    manager.send_signal(signal.SIGINT)
    output = read_until(manager, 'running experiments may finish')
    if times == 2:
        manager.send_signal(signal.SIGINT)
    else:
        manage.go()
    output += finish(manager)
    assert manager.returncode == 75 and manage.states() == {'a': expected, 'b': 'queued'}, output
    manage.go()
    assert manage('run').returncode == 0 and manage.states() == {'a': 'done', 'b': 'done'}


def hang(manage, name='a'):
    """Let a run hang, as in a dead network disk: it gets no signal but SIGKILL. Returns its pid."""
    pid = manage.json()[name]['pid']
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_run_that_hangs_can_be_killed_by_its_name(manage):
    manager = manage.hold('b: config/toy.py')
    pid = hang(manage)
    assert 'ends after its current iteration' in ok(manage('stop', 'a')).stdout
    again = manage('stop', 'a')
    assert again.returncode == 2 and f'its process {pid} has not ended yet' in again.stderr
    assert 'to kill it now, without a checkpoint: python run_manager.py stop --now a' in again.stderr
    assert 'asked to stop' in manage('status').stdout
    assert 'a was killed' in ok(manage('stop', '--now', 'a')).stdout
    output = finish(manager)
    assert manage.states() == {'a': 'stopped', 'b': 'done'}, output
    assert manage.json()['a']['attempts'] == 0
    manage.go()
    assert 'is in the queue again' in ok(manage('retry', 'a')).stdout and manage('run').returncode == 0
    assert manage.resumed() == [False, True]


@pytest.mark.slow
def test_a_run_that_hangs_without_a_manager_can_be_killed_too(manage):
    with manage.hold() as manager:
        manager.kill()
    hang(manage)
    ok(manage('stop', '--now', 'a'))
    assert manage.states() == {'a': 'stopped'}


def test_a_run_that_does_not_end_in_time_is_killed_by_the_manager(manage):
    manager = manage.hold('b: config/toy.py', words=['--grace=0.1'])
    hang(manage)
    ok(manage('stop', 'a'))
    output = finish(manager)
    assert 'a: killed, as it had not ended' in output and manage.states() == {'a': 'stopped', 'b': 'done'}


@pytest.mark.parametrize('signals', [[signal.SIGTERM] * 2, slow([signal.SIGINT] * 3)])
def test_runs_that_hang_do_not_keep_the_manager(manage, signals):
    manager = manage.hold('b: config/toy.py')
    hang(manage)
    for number, text in zip(signals, ['running experiments', 'running experiments', 'killing'][-len(signals):]):
        manager.send_signal(number)
        output = read_until(manager, text)
    output += finish(manager)
    assert manager.returncode == 75 and manage.states() == {'a': 'queued', 'b': 'queued'}, output


@pytest.mark.skipif(sys.platform != 'linux', reason='the environment of processes is in /proc')
def test_what_a_killed_run_leaves_behind_is_killed_before_it_goes_on(manage):
    """As the ranks of a torchrun that was killed: they would train beside it, and hold its GPUs."""
    with open(manage.folder / 'train.py') as f:
        code = f.read()
    orphan = ('import subprocess\norphan = subprocess.Popen(["sleep", "900"], start_new_session=True)\n'
              'open("orphan", "a").write(f"{orphan.pid}\\n")\n')
    (manage.folder / 'train.py').write_text(code.replace('\nfor i in range(first', f'\n{orphan}for i in range(first'))
    manager = manage.hold()
    os.kill(manage.json()['a']['pid'], signal.SIGKILL)
    manage.go()
    output = finish(manager)
    first, last = map(int, (manage.folder / 'orphan').read_text().split())
    os.kill(last, signal.SIGKILL)  # what a run that is done leaves is its own business
    assert manage.states() == {'a': 'done'} and process_start(first) is None, output


def test_a_mistake_of_the_user_is_not_tried_again(manage):
    manage.write('a: config/toy.py --wandb_run_name=mistake', 'b: config/toy.py')
    done = manage('run')
    assert manage.states() == {'a': 'failed', 'b': 'done'} and len(manage.starts()) == 1
    assert 'train.py: n_head=0 is below 1 (that would only fail again; once it is fixed: python run_manager.py ' \
           'retry a)' in done.stdout


def test_jobs_run_several_at_once_and_divide_the_cores(manage):
    with open(manage.folder / 'train.py', 'a') as f:
        f.write('print("threads", os.environ.get("OMP_NUM_THREADS"))\n')
    manage.write(*(f'{name}: config/toy.py {HOLDS}' for name in 'abc'))
    manager = manage.start('--jobs=2', OMP_NUM_THREADS='7')
    wait_for(lambda: all(map(manage.holds, 'ab')))
    assert manage.states() == {'a': 'running', 'b': 'running', 'c': 'queued'}
    manage.go()
    finish(manager)
    assert manager.returncode == 0 and 'threads 7' in manage.log()
    manage.write('d: config/toy.py')
    output = manage.shell('unset OMP_NUM_THREADS; $manage run --jobs=1000').stdout
    assert '1000 experiments share the machine; OMP_NUM_THREADS=1' in output and 'threads 1' in manage.log('d')


def test_a_dry_run_for_gpus_of_another_machine_names_what_is_missing_here_and_prints_the_commands(manage):
    manage.write('a: config/toy.py')
    refused, dry = manage('run', '--gpus=7'), manage('run', '--gpus=7', '--dry_run')
    assert refused.returncode == 2 and '--gpus=7' in refused.stderr and not manage.results.exists()
    assert dry.returncode == 0 and dry.stderr == refused.stderr and 'train.py config/toy.py' in dry.stdout


@pytest.mark.parametrize('words, expected', [
    slow(['--jobs=0'], '--jobs=0 is below 1'), slow(['--grace=nan'], '--grace=nan is not a number of seconds'),
    (['--launcher=slurm', '--jobs=2'], '--jobs does not go with --launcher=slurm'),
    (['--sbatch=--time=1'], '--sbatch has no effect without'),
    slow(['--launcher=slurm', '--dry_run', '--sbatch="'], 'No closing quotation')])
def test_options_that_do_not_go_together_are_refused(manage, words, expected):
    manage.write('a: config/toy.py')
    done = manage('run', *words)
    assert done.returncode == 2 and expected in done.stderr and not manage.results.exists()


@pytest.mark.parametrize('words, expected', [
    ('add --seed=2 --max_iters=50', 'unknown setting --seed=2; -- goes in front of a line that begins with an option'),
    ('retry a --failed', 'not allowed with'), ('retry', 'name --failed is required'),
    ('statsu', "unknown command 'statsu'; did you mean status?"), ('', 'name a command, one of run, status'),
    ('--jobs=2 run', 'unknown setting --jobs=2; options go behind a command'),
    ('run --dry-run', 'unknown setting --dry-run; did you mean dry_run?'), ('run --n_jobs=2', 'did you mean jobs?'),
    ('run --parallel 2', 'did you mean jobs?'), ('run -j 2', 'did you mean jobs?'),
    ('run --num_gpus=8', 'did you mean nproc_per_node?'), ('run --time=1', "sbatch? As in --sbatch='--time=12:00:00'"),
    ('run --max_iters=50', 'unknown setting --max_iters=50; what train.py takes stands in the list'),
    ('run --jobs=two', "jobs expects int, as in --jobs=1, but got 'two'"),
    ('run --grace=long', "grace expects float, as in --grace=300, but got 'long'"),
    ('run --launcher=ssh', "unknown --launcher 'ssh'; there are local, slurm"), ('run --dry_run=1', 'expects bool'),
    ('run mine.conf', "'mine.conf' belongs to no option; did you mean --list=mine.conf?"),
    ('logs a --tail=5', 'did you mean -n?'), ('curve out --reference=b', 'did you mean against?'),
    ('report --output=x', 'did you mean out?'),
    ('curve --out_dir=a', '--out_dir=a; it stands by itself, as in run_manager.py curve a')])
def test_a_command_line_that_cannot_be_understood_says_what_to_type(words, expected, capsys):
    with pytest.raises(SystemExit) as stopped, command_line('run_manager.py', *words.split()):
        run_manager.parse_command_line()
    assert stopped.value.code == 2 and expected in capsys.readouterr().err


@pytest.mark.parametrize('first, others', [(first, others) for first, *others in [
    ('run --dry_run --jobs=2', 'run --dry_run=True --jobs 2', 'run --jobs 2 --dry_run True'),
    ('run', 'run --dry_run=False', 'run --dry_run False', 'run --dry_run --dry_run=False'),
    ('logs a -f -n 5', 'logs -fn5 a', 'logs --follow=True -n 5 a', 'logs a -n=5 -f'),
    ('retry --failed', 'retry --failed=True', 'retry --failed True'), ('retry a', 'retry a --failed=False'),
    ('stop --now a', 'stop a --now', 'stop --now=True a'), ('status --watch', 'status --watch --json=False'),
    ('report a b --target=1.9', 'report --target 1.9 a b'), ('curve a --json', 'curve --json=True a')]])
def test_options_have_the_forms_that_they_have_in_train_py(first, others):
    def parse(words):
        with command_line('run_manager.py', *words.split()):
            return run_manager.parse_command_line()
    assert all(parse(words) == parse(first) for words in others)


def test_a_line_to_add_passes_untouched():
    line = ['a:', '--dry_run', 'False', '--epochs=3', '-x', '--help', '--', '--seed 2']
    with command_line('run_manager.py', 'add', '--list', 'mine.conf', *line):
        options = run_manager.parse_command_line()
    assert options.words == line and options.list == 'mine.conf'


def test_a_watch_asks_slurm_every_30_seconds_and_before_the_queue_is_locked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.conf').write_text('a: --seed=2\n')
    queue, asked = Queue('mine.conf'), []
    with queue.changing() as runs:
        runs['a'] = Run(state='submitted', started=5, job='7', out_dir='results/a')

    def ask(runs):
        asked.append(files.is_locked(f'{queue.path}.lock'))
        return {'7': ('RUNNING', None)}
    monkeypatch.setattr('common.experiments.slurm.ask', ask)
    monkeypatch.setattr('common.experiments.status.watch', lambda lines: [lines() for _ in range(16)])
    run_manager.show_status(Namespace(watch=True, list='mine.conf'), queue)
    assert asked == [False, False] and queue.read()['a'].slurm == 'RUNNING'


def test_a_package_that_is_missing_is_said_before_anything_starts(manage):
    (manage.folder / 'wcwidth.py').write_text('raise ModuleNotFoundError("no", name="wcwidth")')
    manage.write('a: config/toy.py')
    done = manage('run')
    assert done.returncode and 'the package wcwidth is not installed' in done.stderr and not manage.results.exists()


@pytest.mark.slow
def test_a_stopped_run_whose_folder_was_removed_begins_there_and_resumes_again(manage):
    with manage.hold() as manager:
        ok(manage('stop', 'a'))
        finish(manager)
    shutil.rmtree(manage.results / 'a')
    ok(manage('retry', 'a'))
    with manage.start() as manager:
        wait_for(lambda: manage.holds('a') and manage.json()['a']['pid'])
        ok(manage('stop', 'a'))
        finish(manager)
    manage.go()
    ok(manage('retry', 'a'))
    ok(manage('run'))
    assert manage.resumed() == [False, True]


def test_slurm_is_shown_before_it_is_used(manage):
    manage.write('a: config/toy.py', 'b: config/toy.py after=a')
    output = ok(manage('run', '--launcher=slurm', '--dry_run', '--sbatch=--time=10')).stdout
    assert 'sbatch --parsable --job-name=a' in output and '--dependency=afterok:JOB_OF_a' in output
    assert '--time=10 <<"END"\n#!/bin/bash\n' in output and not manage.results.exists()


def test_an_experiment_is_added_from_the_command_line_while_the_manager_works(manage):
    manager = manage.hold()
    path = manage.folder / 'config' / 'experiment_list.conf'
    path.write_bytes(f'\ufeff# mine\r\na: config/toy.py {HOLDS}'.encode())  # without an end of its line
    done = ok(manage('add', '실험:', 'config/toy.py', '--wandb_project=a b#c', '--seed=2'))
    assert 'the manager that is running takes it up' in done.stdout
    assert path.read_bytes().decode() == (f"\ufeff# mine\r\na: config/toy.py {HOLDS}\r\n"
                                          "실험: config/toy.py '--wandb_project=a b#c' --seed=2\r\n")
    manage.go()
    finish(manager)
    assert manage.states() == {'a': 'done', '실험': 'done'}
    ok(manage('add', 'c: config/toy.py --seed=3'))  # a whole line in quotes, too
    ok(manage('add', '--', '--max_iters=5', '--dataset=toy', '--n_embd=8', '--n_head=1'))
    assert path.read_text().splitlines()[-2:] == ['c: config/toy.py --seed=3',
                                                  '--max_iters=5 --dataset=toy --n_embd=8 --n_head=1']


@pytest.mark.parametrize('words, expected', [
    (['b:', 'config/toy.py', '--max_itres=3'], 'line 2: unknown setting --max_itres=3'),
    (['b:', 'config/toy.py', '--wandb_project=x\ny'], 'is not one line'), slow(['# no'], 'is a comment, or empty'),
    slow(['a:', 'config/toy.py'], 'line 2: a is the name of line 1 too'), slow([], 'add needs a line'),
    slow(['b:', 'config/toy.py', '--dataset=none'], "line 2: dataset 'none' has no train.bin"),
    slow(['b:', 'config/toy.py', '--list=x.conf'], '--list goes in front of the line'),
    slow(['b:', 'config/toy.py', '--wandb_project=\udcff'], 'is not text in UTF-8')])
def test_a_line_with_a_mistake_is_not_added(manage, words, expected):
    manage.write('a: config/toy.py')
    done = manage('add', *words)
    assert done.returncode == 2 and expected in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert (manage.folder / 'config' / 'experiment_list.conf').read_text() == 'a: config/toy.py\n'


def test_an_experiment_is_removed_from_the_list_and_its_results_stay(manage):
    manager = manage.hold('# a comment', "b: config/toy.py  # don't", 'c: config/toy.py', 'd: config/toy.py after=c')
    path = manage.folder / 'config' / 'experiment_list.conf'
    before = path.read_text()
    assert 'stop a' in manage('remove', 'a').stderr and 'd comes after c' in manage('remove', 'c').stderr
    assert "no experiment is called 'x'" in manage('remove', 'x').stderr and path.read_text() == before
    assert 'b is out of' in ok(manage('remove', 'b')).stdout
    assert path.read_text() == before.replace("b: config/toy.py  # don't\n", '')
    manage.go()
    finish(manager)
    assert manage.states() == {'a': 'done', 'c': 'done', 'd': 'done'}
    assert 'what it wrote stays in results/a' in ok(manage('remove', 'a')).stdout and manage.holds('a') is False
    assert 'a' not in manage.states() and (manage.results / 'a' / 'metrics.jsonl').exists()


def test_a_list_that_becomes_empty_starts_nothing_more(manage):
    manager = manage.hold('b: config/toy.py')
    manage.write('# nothing')
    manage.go()
    finish(manager)
    assert manage.states() == {'a': 'done', 'b': 'queued'} and 'a is out of' in manage('remove', 'a').stdout
    assert 'no experiment in it yet' in manage('run').stderr


def test_two_lists_do_not_write_to_one_folder(manage):
    manage.write('a: config/toy.py')
    ok(manage('run'))
    (manage.folder / 'experiment_list.conf').write_text('b: config/toy.py\na: config/toy.py --seed=2\n')
    before = (manage.results / 'a' / 'log.txt').read_text()
    for words in (['--dry_run'], []):
        done = manage('run', '--list=experiment_list.conf', *words)
        assert done.returncode == 2 and "line 2: out_dir='results/a' has what a of the list " in done.stderr
        assert 'config/experiment_list.conf wrote; put another name in front, as in a-2: ...' in done.stderr
    assert manage.states() == {'a': 'done'} and manage.log() == before
    status = manage('status', '--list=experiment_list.conf').stdout
    assert re.search('(?m)^a +queued$', status) and 'config/experiment_list.conf' in status


@pytest.mark.slow
def test_a_list_whose_manager_works_does_not_take_a_folder_that_another_one_took_meanwhile(manage):
    manager = manage.hold('b: config/toy.py')
    (manage.folder / 'mine.conf').write_text('b: config/toy.py --seed=2\n')
    ok(manage('run', '--list=mine.conf'))
    manage.go()
    output = finish(manager)
    assert manage.states() == {'a': 'done', 'b': 'failed'} and len(manage.starts('b')) == 1, output
    assert "b: failed: not started: out_dir='results/b' has what b of the list mine.conf wrote" in output


@pytest.mark.slow
def test_a_damaged_state_file_is_repaired_by_its_command(manage):
    manage.write('a: config/toy.py', 'b: config/toy.py')
    ok(manage('run'))
    path = manage.results / 'experiment_list.json'
    path.write_text('{"a": {"state": "do')
    for words in ('status', 'run', 'stop a', 'remove a', 'add c: config/toy.py'):
        done = manage(*words.split())
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert 'experiment_list.json is damaged' in done.stderr and path.read_text() == '{"a": {"state": "do'
    assert re.search('(?m)^a +done +best val loss 1.5000', ok(manage('repair')).stdout)
    ok(manage('run'))
    assert len(manage.starts()) == 1


def test_status_knows_where_a_run_is(manage):
    manage.hold('b: config/toy.py', settings='--max_iters=500')
    status = manage('status').stdout
    row = re.search(r'(?m)^a +running +(\d+) +\d\d-\d\d \d\d:\d\d  4 of 500, loss 2.000, 10 tok/s, 10s left$', status)
    assert row and int(row[1]) == manage.json()['a']['pid'], status
    rows = {one['name']: one for one in json.loads(manage('status', '--json').stdout)}
    assert rows['a']['state'] == 'running' and rows['a']['loss'] == 2.0 and rows['b']['state'] == 'queued'
    assert manage('logs', 'a').stdout.startswith('$ python train.py config/toy.py')


@pytest.mark.parametrize('lines, expected', [
    (['config/toy.py --bath_size=3'], 'line 1: unknown setting --bath_size=3; did you mean batch_size'),
    (['my first: config/toy.py --seed=2'], 'a name has no spaces, as in my-first: config/toy.py --seed=2'),
    (['-x: config/toy.py'], "the name '-x'"), ([': config/toy.py'], "the name ''"),
    (['config/toy.py --n_head=3'], 'n_embd=8 is not divisible by n_head=3'),
    (['config/toys.py'], "no config file 'config/toys.py'; did you mean config/toy.py"),
    (['config/toy.py', 'config/toy.py'], 'is the name of line 1 too'),
    (['a: config/toy.py --out_dir=x', 'b: config/toy.py --out_dir=./x'], 'line 2: line 1 writes to'),
    (['a: config/toy.py after=b', 'b: config/toy.py after=a'], 'a waits for itself'),
    (['a: config/toy.py after=z'], 'after=z names no experiment'),
    (['a: config/toy.py', 'b: config/toy.py --init_from=results/a'], 'add after=a'),
    (['a: config/toy.py --dataset=none'], "experiment_list.conf, line 1: dataset 'none' has no train.bin"),
    (['a: config/toy.py --n_embd=1000000 --n_layer=1000'], 'GB free'),
    (['a: config/toy.py --warmup_iters=9 --lr_decay_iters=5'], 'warmup_iters=9 is not below'),
    (['a: config/toy.py --eval_only=True'], 'eval_only trains nothing'),
    (['a: --out_dir=x config/there.py'], "a config file sets out_dir='there' after --out_dir"),
    (['a: config/toy.py --out_dir=config/toy.py/a'], 'toy.py is a file, not a folder; name another folder'),
    (["a: config/toy.py --out_dir='x"], 'No closing quotation'), (['# nothing'], 'no experiment in it yet')])
def test_a_mistake_is_named_and_nothing_starts(manage, lines, expected):
    manage.write(*lines)
    done = manage('run')
    assert done.returncode == 2 and expected in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not manage.results.exists()


SLURM = '''#!{python}
import json, os, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({calls!r}, 'a') as f:
    f.write(json.dumps([name, words, sys.stdin.read() if name == 'sbatch' else '']) + '\\n')
if name == 'sbatch':
    print(100 + open({calls!r}).read().count('["sbatch"'))
elif os.path.exists({answers!r}):
    print(json.load(open({answers!r})).get(name, ''), end='')
'''


def test_slurm_gets_a_job_for_each_and_is_asked_about_them(manage):
    calls, answers = manage.folder / 'calls', manage.folder / 'answers'
    for name in ('sbatch', 'squeue', 'sacct', 'scancel', 'scontrol'):
        path = manage.program(name, SLURM.format(python=sys.executable, calls=str(calls), answers=str(answers)))
    manage.write('b: config/toy.py after=a', 'a: config/toy.py', 'c: config/toy.py')
    assert 'there is no sbatch here' in manage('run', '--launcher=slurm').stderr
    ok(manage('run', '--launcher=slurm', '--sbatch=--gres=gpu:1 --time=10', PATH=path))
    jobs = [call for call in map(json.loads, open(calls)) if call[0] == 'sbatch']
    assert [[word for word in call[1] if word.startswith('--job')] for call in jobs] == [
        ['--job-name=a'], ['--job-name=c'], ['--job-name=b']]
    assert '--dependency=afterok:101' in jobs[2][1] and '--gres=gpu:1' in jobs[0][1] and '--time=10' in jobs[0][1]
    script = jobs[0][2]
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0
    # as Slurm would: run the job, warn it ahead of its time limit, and start it again
    job = dict(cwd=manage.folder, env=dict(os.environ, SLURM_JOB_ID='101', PATH=path))
    first = subprocess.Popen(['bash', '-c', script.replace('results/a', f'results/a {HOLDS}')], **job)
    wait_for(lambda: manage.holds('a'))
    first.send_signal(signal.SIGUSR1)
    assert first.wait() == 75
    assert ['scontrol', ['requeue', '101'], ''] in [json.loads(line) for line in open(calls)]
    again = subprocess.run(['bash', '-c', script], timeout=HANG, **job)
    assert again.returncode == 0 and read_metrics(manage.results / 'a')[2]['done']
    answers.write_text(json.dumps({'squeue': '102|RUNNING\n103|PENDING',
                                   'sacct': '101|COMPLETED|0:0\n102|RUNNING|0:0'}))
    status = manage('status', PATH=path).stdout
    for row in ('a +done', 'c +running +job 102', 'b +pending +job 103'):
        assert re.search(f'(?m)^{row}', status)
    assert manage('stop', 'c', PATH=path).returncode == 0
    assert ['scancel', ['--batch', '--signal=TERM', '102'], ''] in [json.loads(line) for line in open(calls)]
    answers.write_text(json.dumps({'sacct': '103|OUT_OF_MEMORY|0:125'}))
    (manage.results / 'b' / 'log.txt').write_text('Killed\n')
    assert re.search('(?m)^b +failed +OUT_OF_MEMORY 0:125: Killed', manage('status', PATH=path).stdout)


def test_no_job_is_submitted_twice_after_slurm_refuses_one(manage):
    calls = manage.folder / 'calls'
    manage.program('sbatch', f'#!/bin/sh\necho "$*" >> {calls}\n'
                             'case "$*" in *name=b*) echo "QOS limit" >&2; exit 1;; esac; echo 7\n')
    manage.program('squeue', '#!/bin/sh\necho "7|PENDING"\n')
    path = manage.program('sacct', '#!/bin/sh\nexit 1\n')
    manage.write('a: config/toy.py', 'b: config/toy.py')
    for _ in range(2):
        done = manage('run', '--launcher=slurm', PATH=path)
        assert done.returncode == 2 and 'sbatch: QOS limit' in done.stderr
    assert calls.read_text().count('name=a') == 1 and manage.states()['a'] == 'submitted'


def test_a_job_that_cannot_be_recorded_is_cancelled(manage):
    calls = manage.folder / 'calls'
    for name in ('sbatch', 'scancel'):
        path = manage.program(name, f'#!/bin/sh\necho "{name} $*" >> {calls}\necho 7\n')
    manage.write('a: config/toy.py')
    (manage.results / 'experiment_list.json.tmp').mkdir(parents=True)
    done = manage('run', '--launcher=slurm', PATH=path)
    assert done.returncode == 2 and 'experiment_list.json.tmp' in done.stderr
    assert calls.read_text().splitlines()[-1] == 'scancel 7'


def test_the_list_in_the_project_can_be_pasted_and_needs_no_torch(tmp_path):
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    output = ok(python('run_manager.py', 'run', '--dry_run', cwd=ROOT, PYTHONPATH=str(tmp_path))).stdout
    for line in output.splitlines():
        assert line.startswith('python train.py config/quickstart.py ')
        assert python('train.py', *line.split()[2:], '--help', cwd=ROOT).returncode == 0


def test_a_curve_is_judged_without_torch(manage):
    (manage.folder / 'torch.py').write_text('raise SystemExit("torch was imported")')
    one = references.REFERENCES[0]
    tokens, low, high = one.points[-1]
    iterations = tokens // references.tokens_per_iter(one.recipe)
    for name, loss in (('good', (low + high) / 2), ('bad', high + 0.1)):
        folder = manage.results / name
        folder.mkdir(parents=True)
        (folder / 'settings.json').write_text(json.dumps({**one.recipe, **one.model, 'dataset': one.datasets[0]}))
        line = dict(iter=iterations, train_loss=loss, val_loss=loss, tokens=tokens, train_s=1.0)
        (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    output = ok(manage('curve', 'results/good')).stdout
    assert output.startswith(f'good: as expected\nat {tokens:,} tokens (iteration {iterations:,}): yours ')
    assert f'expected {low:.3f} to {high:.3f}\n' in output and one.source in output
    assert json.loads(ok(manage('curve', 'results/bad', '--json')).stdout)['verdict'] == 'slower than expected'
    against = ok(manage('curve', 'results/bad', '--against=results/good')).stdout
    assert 'bad: slower than expected' in against and 'reference: good' in against
    missing = manage('curve', 'results/none')
    assert missing.returncode == 2 and missing.stderr == (
        'run_manager.py: no metrics.jsonl in results/none; give the out_dir of a run\n')


def test_real_runs_survive_the_manager(run, corpus_dir, tmp_path):
    toy = f'{" ".join(TOY)} --dataset={corpus_dir}'
    (tmp_path / 'mine.conf').write_text(f'a: {toy} --max_iters=100 --lr_decay_iters=100\n'
                                        f'b: {toy} --init_from=results/a after=a\n')
    words = [sys.executable, os.path.join(ROOT, 'run_manager.py'), 'run', '--list=mine.conf']
    metrics = tmp_path / 'results' / 'a' / 'metrics.jsonl'
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL) as first:
        wait_for(lambda: metrics.exists() and '"iter": 20,' in metrics.read_text())
        pid = json.loads((tmp_path / 'results' / 'mine.json').read_text())['a']['pid']
        os.kill(pid, signal.SIGSTOP)
        first.kill()
    second = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: 'no manager is running' not in run('run_manager.py', 'status', '--list=mine.conf').stdout)
    os.kill(pid, signal.SIGCONT)
    output = finish(second)
    assert second.returncode == 0, output
    assert len(read_metrics(tmp_path / 'results' / 'a')[0]) == 100
    assert read_metrics(tmp_path / 'results' / 'b')[2]['done']
    assert (tmp_path / 'results' / 'a' / 'log.txt').read_text().count('$ python') == 1, 'it was found alive'
