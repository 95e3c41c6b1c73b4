"""
run_manager.py as a user runs it, with a stand-in for train.py that has its settings and exit codes but learns nothing
and needs no torch. The last test uses the real train.py.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from common.experiments.runs import Run
from conftest import TOY, read_metrics
from running import HANG, ROOT, python

# wandb_run_name says how the stand-in behaves. It saves its state at each iteration. One that `holds` waits before
# iteration 5 until it is stopped or a file `go` appears.
STAND_IN = '''
import json, signal, time
stopped = []
signal.signal(signal.SIGTERM, lambda *args: stopped.append(1))
os.makedirs(out_dir, exist_ok=True)
last, first = os.path.join(out_dir, 'last.pt'), 0
if init_from == 'auto' and os.path.exists(last):
    first = int(open(last).read())
log = open(os.path.join(out_dir, 'metrics.jsonl'), 'a')
while os.environ.get('RANK', '0') != '0':  # under torchrun rank 0 does all the work
    if stopped or '"done"' in open(log.name).read():
        sys.exit(75 if stopped else 0)
    time.sleep(0.02)
print('GPU', os.environ.get('CUDA_VISIBLE_DEVICES'), 'from', first, flush=True)
def write(**line):
    print(json.dumps(line), file=log, flush=True)
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


@pytest.fixture
def place(tmp_path):
    """A folder with run_manager.py, the stand-in for train.py, and a dataset."""
    for name in ('run_manager.py', 'configurator.py'):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    shutil.copytree(os.path.join(ROOT, 'common'), tmp_path / 'common', ignore=shutil.ignore_patterns('__pycache__'))
    manager = tmp_path / 'common' / 'experiments' / 'manager.py'
    source = manager.read_text()
    for name, value in (('PAUSE', 0.2), ('LOOK', 0.05), ('AT_ONCE', HANG)):  # so every failure counts as one at once
        source, changes = re.subn(rf'^{name} = \S+', f'{name} = {value}', source, flags=re.MULTILINE)
        assert changes == 1
    manager.write_text(source)
    source = open(os.path.join(ROOT, 'train.py')).read()
    settings = source[:source.index('exec(open(')]
    configuring = "exec(open(os.path.join(root, 'configurator.py')).read())\n"
    (tmp_path / 'train.py').write_text(settings + configuring + STAND_IN)
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config' / 'toy.py').write_text('max_iters = 10\nn_embd = 8\nn_head = 1\ndataset = "toy"\n')
    (tmp_path / 'config' / 'there.py').write_text('out_dir = "there"\n')
    (tmp_path / 'data' / 'toy').mkdir(parents=True)
    for split in ('train', 'val'):
        (tmp_path / 'data' / 'toy' / f'{split}.bin').write_bytes(bytes(4096))
    return tmp_path


@pytest.fixture
def manage(place):
    """manage('status', ...) runs run_manager.py with these words to its end; manage.start('run') does not wait."""
    def run(*words, **env):
        return subprocess.run([sys.executable, 'run_manager.py', *words], cwd=place, env={**os.environ, **env},
                              capture_output=True, text=True, timeout=HANG)

    started = []

    def start(*words, **env):
        started.append(subprocess.Popen([sys.executable, 'run_manager.py', *words], cwd=place, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, env={**os.environ, **env}))
        return started[-1]
    run.start = start
    yield run
    for process in started:
        process.kill()
        process.communicate()
    go(place)
    for values in json_of(place).values():
        if Run(**values).is_alive():
            os.kill(values['pid'], signal.SIGKILL)


def write_list(place, *lines):
    (place / 'config' / 'new').write_text('\n'.join(lines) + '\n')
    os.replace(place / 'config' / 'new', place / 'config' / 'experiment_list.conf')


def json_of(place):
    path = place / 'results' / 'experiment_list.json'
    return json.loads(path.read_text()) if path.exists() else {}


def states(place):
    return {name: run['state'] for name, run in json_of(place).items()}


def starts(place, name):
    """The command lines in the log of a run."""
    return [line for line in (place / 'results' / name / 'log.txt').read_text().splitlines() if line[0] == '$']


def wait_for(condition):
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, 'it never came'
        time.sleep(0.02)


HOLDS = '--wandb_run_name=holds'


def held(place, *names):
    """Wait until experiments that hold do so and the manager has recorded their pids."""
    for name in names:
        path = place / 'results' / name / 'last.pt'
        wait_for(lambda: path.exists() and path.read_text() == '5' and json_of(place)[name]['pid'])


def go(place):
    """Let the experiments that hold go on, now and later."""
    (place / 'go').touch()


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


def test_a_list_is_worked_through_in_its_order_but_for_what_waits(place, manage):
    write_list(place, '# three', 'b: config/toy.py after=c', 'a: config/toy.py --seed=2   # the first', '',
               'c: config/toy.py', 'config/toy.py --seed=3')
    done = manage('run')
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r'(\S+): started', done.stdout) == ['a', 'c', 'b', 'toy-seed=3'] or \
        re.findall(r'(\S+): started', done.stdout) == ['a', 'c', 'toy-seed=3', 'b']
    assert set(states(place).values()) == {'done'} and 'best val loss 1.5000 in 1s' in done.stdout
    assert starts(place, 'a') == ['$ python train.py config/toy.py --seed=2 --out_dir=results/a']
    assert manage('run').returncode == 0 and len(starts(place, 'a')) == 1, 'what is done stays done'


def test_an_experiment_never_runs_beside_another_in_one_slot(place, manage):
    write_list(place, 'a: config/toy.py', 'b: config/toy.py', 'c: config/toy.py')
    output = manage('run').stdout
    assert re.findall(r'(\w): (started|done)', output) == [(name, event) for name in 'abc'
                                                           for event in ('started', 'done')]


def test_each_gpu_has_its_own_experiment(place, manage):
    (place / 'nvidia-smi').write_text('#!/bin/sh\necho "GPU 0: a Laptop GPU (UUID)"; echo "GPU 1: stand-in"\n')
    (place / 'nvidia-smi').chmod(0o755)
    path = f'{place}:{os.environ["PATH"]}'
    write_list(place, f'a: config/toy.py {HOLDS}', f'b: config/toy.py {HOLDS}', 'c: config/toy.py')
    manager = manage.start('run', '--gpus=0,1', PATH=path)
    held(place, 'a', 'b')  # at once
    runs = json_of(place)
    assert {runs['a']['slot'], runs['b']['slot']} == {'0', '1'} and runs['c']['state'] == 'queued'
    go(place)
    output = finish(manager)
    assert manager.returncode == 0 and set(states(place).values()) == {'done'}, output
    assert 'GPU 1' in (place / 'results' / 'b' / 'log.txt').read_text()
    assert 'knows 2 GPUs' in manage('run', '--gpus=2', PATH=path).stderr
    assert 'not like 0,1' in manage('run', '--gpus=a', PATH=path).stderr


def test_what_fails_is_tried_again_twice(place, manage):
    write_list(place, 'fine: config/toy.py', 'bad: config/toy.py --wandb_run_name=fails',
               'after: config/toy.py after=bad', 'unlucky: config/toy.py --wandb_run_name="fails once"')
    done = manage('run')
    assert done.returncode == 1
    assert states(place) == {'fine': 'done', 'bad': 'failed', 'after': 'queued', 'unlucky': 'done'}, done.stdout
    assert len(starts(place, 'bad')) == 3 and len(starts(place, 'unlucky')) == 2
    status = manage('status').stdout
    assert re.search(r'^bad +failed +no such luck$', status, re.MULTILINE)
    assert re.search(r'^after +queued +after bad \(failed\)$', status, re.MULTILINE)
    write_list(place, 'bad: config/toy.py', 'after: config/toy.py after=bad')
    assert 'bad is in the queue again' in manage('retry', '--failed').stdout
    assert manage('run').returncode == 0 and states(place)['after'] == 'done'


def test_three_that_fail_at_once_end_the_queue(place, manage):
    write_list(place, *(f'{name}: config/toy.py --wandb_run_name=fails' for name in 'abcd'))
    done = manage('run')
    assert done.returncode == 1
    assert f'three in a row failed within {HANG} seconds; the last said: no such luck' in done.stdout
    assert set(re.findall(r'(\w): started', done.stdout)) == set('abc') and states(place)['d'] == 'queued'


def test_what_depends_on_a_failure_indirectly_is_not_waited_for(place, manage):
    write_list(place, 'a: config/toy.py --wandb_run_name=fails', 'b: config/toy.py after=a', 'c: config/toy.py after=b')
    assert manage('run').returncode == 1
    assert states(place) == {'a': 'failed', 'b': 'queued', 'c': 'queued'}


def test_an_older_run_in_the_folder_is_not_taken_for_this_one(place, manage):
    (place / 'results' / 'a').mkdir(parents=True)
    (place / 'results' / 'a' / 'last.pt').write_text('7')
    (place / 'results' / 'a' / 'metrics.jsonl').write_text('{"iter": 10, "done": true}\n')
    write_list(place, 'a: config/toy.py --wandb_run_name="fails once"')
    assert manage('run').returncode == 0
    assert [line.endswith('--init_from=auto') for line in starts(place, 'a')] == [False, False]


def test_a_line_that_changes_while_it_runs_changes_nothing(place, manage):
    write_list(place, f'a: config/toy.py {HOLDS}')
    manager = manage.start('run')
    held(place, 'a')
    write_list(place, f'a: config/toy.py {HOLDS} --out_dir=elsewhere', 'b: config/toy.py')
    wait_for(lambda: 'b' in json_of(place))  # the list was read again
    go(place)
    finish(manager)
    assert states(place) == {'a': 'done', 'b': 'done'} and not (place / 'elsewhere').exists()
    assert 'its line has changed since it was done' in manage('run').stdout


def test_what_cannot_be_started_fails_alone(place, manage):
    write_list(place, 'a: config/toy.py', 'b: config/toy.py')
    (place / 'results' / 'a' / 'log.txt').mkdir(parents=True)
    assert manage('run').returncode == 1
    assert states(place) == {'a': 'failed', 'b': 'done'} and 'not started' in json_of(place)['a']['error']


def test_a_preempted_run_goes_on_and_that_is_no_failure(place, manage):
    write_list(place, 'a: config/toy.py --wandb_run_name=preempted --max_iters=30')
    assert manage('run').returncode == 0
    assert json_of(place)['a']['attempts'] == 0
    assert [line.endswith('--init_from=auto') for line in starts(place, 'a')] == [False, True]
    assert 'from 4' in (place / 'results' / 'a' / 'log.txt').read_text()


def test_a_run_that_was_stopped_under_torchrun_goes_on(place, manage):
    """torchrun then exits with 1, as after a failure."""
    write_list(place, f'a: config/toy.py {HOLDS}')
    manager = manage.start('run', '--nproc_per_node=2')
    held(place, 'a')
    os.kill(json_of(place)['a']['pid'], signal.SIGTERM)
    output = finish(manager)
    assert 'goes on from its checkpoint' in output and states(place) == {'a': 'done'}, output
    assert 'torch.distributed.run' in starts(place, 'a')[0] and starts(place, 'a')[1].endswith('--init_from=auto')


def test_where_nothing_has_run_the_lists_that_have_run_are_named(place, manage):
    write_list(place, 'a: config/toy.py')
    (place / 'mine.conf').write_text('b: config/toy.py --max_iters=1\n')
    assert 'other lists' not in manage('status').stdout
    assert manage('run', '--list=mine.conf').returncode == 0
    assert '; other lists have run here: mine; --list=FILE names one' in manage('status').stdout
    assert "'b' was not started yet; known: none; other lists have run here: mine" in manage('logs', 'b').stderr
    assert 'other lists' not in manage('status', '--list=mine.conf').stdout


def test_a_killed_manager_finds_its_run_alive(place, manage):
    write_list(place, f'a: config/toy.py {HOLDS}', 'b: config/toy.py')
    first = manage.start('run')
    held(place, 'a')
    first.kill()
    first.wait()
    assert 'nobody works through this list' in manage('status').stdout
    second = manage.start('run')
    wait_for(lambda: 'nobody works' not in manage('status').stdout)
    go(place)
    output = finish(second)
    assert second.returncode == 0 and re.findall(r'(\S+): started', output) == ['b'], output
    assert len(starts(place, 'a')) == 1


def test_a_killed_manager_goes_on_with_a_run_that_died_too(place, manage):
    write_list(place, f'a: config/toy.py {HOLDS}')
    first = manage.start('run')
    held(place, 'a')
    first.kill()
    first.wait()
    os.kill(json_of(place)['a']['pid'], signal.SIGKILL)
    wait_for(lambda: re.search('^a +interrupted', manage('status').stdout, re.MULTILINE))
    go(place)
    assert manage('run').returncode == 0
    assert [line.endswith('--init_from=auto') for line in starts(place, 'a')] == [False, True]
    assert states(place) == {'a': 'done'} and json_of(place)['a']['attempts'] == 0


def test_a_manager_killed_between_starting_and_recording_it_loses_nothing(place, manage):
    write_list(place, 'a: config/toy.py --max_iters=5')
    (place / 'results').mkdir()
    run = Run(state='running', started=time.time() - 2 * HANG, max_iters=5, out_dir='results/a')
    (place / 'results' / 'experiment_list.json').write_text(json.dumps({'a': asdict(run)}))
    assert manage('run').returncode == 0 and states(place) == {'a': 'done'}


def test_one_manager_at_a_time(place, manage):
    write_list(place, f'a: config/toy.py {HOLDS}')
    manage.start('run')
    held(place, 'a')
    other = manage('run')
    assert other.returncode == 2 and 'another run_manager.py works through this list already' in other.stderr


def test_lines_may_be_added_while_it_works_and_a_wrong_one_does_no_harm(place, manage):
    write_list(place, f'a: config/toy.py {HOLDS}')
    manager = manage.start('run')
    held(place, 'a')
    write_list(place, f'a: config/toy.py {HOLDS}', 'b: config/toy.py --max_itres=3')
    output = read_until(manager, 'max_itres')
    write_list(place, 'b: config/toy.py', f'a: config/toy.py {HOLDS}')
    wait_for(lambda: 'b' in json_of(place))
    assert manage('stop', 'a').returncode == 0
    output += finish(manager)
    assert states(place) == {'a': 'stopped', 'b': 'done'}
    assert output.count("unknown setting --max_itres=3; did you mean max_iters") == 1


def test_stop_saves_and_retry_resumes(place, manage):
    write_list(place, f'a: config/toy.py {HOLDS} --max_iters=1000', 'b: config/toy.py')
    manager = manage.start('run')
    held(place, 'a')
    assert manage('stop', 'a').returncode == 0
    finish(manager)
    assert states(place) == {'a': 'stopped', 'b': 'done'}
    assert (place / 'results' / 'a' / 'last.pt').read_text() == '6'
    write_list(place, 'a: config/toy.py --max_iters=11', 'b: config/toy.py')
    assert manage('retry', 'a').returncode == 0 and manage('run').returncode == 0
    assert 'from 6' in (place / 'results' / 'a' / 'log.txt').read_text()
    assert manage('retry', 'a').returncode == 0 and manage('run').returncode == 0
    assert not starts(place, 'a')[-1].endswith('--init_from=auto'), 'what was done begins anew'
    write_list(place, 'a: config/toy.py --init_from=auto', 'b: config/toy.py')  # even if its own line says auto
    assert manage('retry', 'a').returncode == 0 and manage('run').returncode == 0
    assert starts(place, 'a')[-1].endswith('--init_from=scratch')
    assert manage('stop', 'a').returncode == 2 and manage('retry', 'nobody').returncode == 2
    assert 'nothing has failed' in manage('retry', '--failed').stdout


@pytest.mark.parametrize('times, expected', [(1, 'done'), (2, 'queued')])
def test_ctrl_c_once_lets_runs_finish_and_twice_stops_them(place, manage, times, expected):
    write_list(place, f'a: config/toy.py {HOLDS}', 'b: config/toy.py')
    manager = manage.start('run')
    held(place, 'a')
    manager.send_signal(signal.SIGINT)
    output = read_until(manager, 'running experiments may finish')
    if times == 2:
        manager.send_signal(signal.SIGINT)
    else:
        go(place)
    output += finish(manager)
    assert manager.returncode == 75 and states(place) == {'a': expected, 'b': 'queued'}, output
    go(place)
    assert manage('run').returncode == 0 and states(place) == {'a': 'done', 'b': 'done'}


def test_status_knows_where_a_run_is(place, manage):
    write_list(place, f'a: config/toy.py {HOLDS} --max_iters=500', 'b: config/toy.py')
    manage.start('run')
    held(place, 'a')
    status = manage('status').stdout
    assert re.search(r'^a +running +4 of 500, loss 2.000, 10 tok/s, 10s left$', status, re.MULTILINE), status
    rows = {row['name']: row for row in json.loads(manage('status', '--json').stdout)}
    assert rows['a']['state'] == 'running' and rows['a']['loss'] == 2.0 and rows['b']['state'] == 'queued'
    assert manage('logs', 'a').stdout.startswith('$ python train.py config/toy.py')


@pytest.mark.parametrize('lines, expected', [
    (['config/toy.py --bath_size=3'], 'line 1: unknown setting --bath_size=3; did you mean batch_size'),
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
    (['a: config/toy.py --out_dir=config/toy.py/a'], 'cannot be written'),
    (["a: config/toy.py --out_dir='x"], 'No closing quotation'), (['# nothing'], 'no experiment in it yet')])
def test_a_mistake_is_named_and_nothing_starts(place, manage, lines, expected):
    write_list(place, *lines)
    done = manage('run')
    assert done.returncode == 2 and expected in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not (place / 'results').exists()


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


def test_slurm_gets_a_job_for_each_and_is_asked_about_them(place, manage):
    calls, answers = str(place / 'calls'), place / 'answers'
    (place / 'bin').mkdir()
    for name in ('sbatch', 'squeue', 'sacct', 'scancel'):
        (place / 'bin' / name).write_text(SLURM.format(python=sys.executable, calls=calls, answers=str(answers)))
        (place / 'bin' / name).chmod(0o755)
    path = f'{place / "bin"}:{os.environ["PATH"]}'
    write_list(place, 'b: config/toy.py after=a', 'a: config/toy.py', 'c: config/toy.py')
    assert 'there is no sbatch here' in manage('run', '--launcher=slurm').stderr
    done = manage('run', '--launcher=slurm', '--sbatch=--gres=gpu:1 --time=10', PATH=path)
    assert done.returncode == 0, done.stderr
    jobs = [call for call in map(json.loads, open(calls)) if call[0] == 'sbatch']
    assert [[word for word in call[1] if word.startswith('--job')] for call in jobs] == [
        ['--job-name=a'], ['--job-name=c'], ['--job-name=b']]
    assert '--dependency=afterok:101' in jobs[2][1] and '--gres=gpu:1' in jobs[0][1] and '--time=10' in jobs[0][1]
    script = jobs[0][2]
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0
    # as Slurm would: run the job, warn it ahead of its time limit, and start it again
    env = dict(os.environ, SLURM_JOB_ID='101', PATH=path)
    (place / 'bin' / 'scontrol').write_text(SLURM.format(python=sys.executable, calls=calls, answers=str(answers)))
    (place / 'bin' / 'scontrol').chmod(0o755)
    first = subprocess.Popen(['bash', '-c', script.replace('results/a', f'results/a {HOLDS}')], cwd=place, env=env)
    wait_for(lambda: (place / 'results' / 'a' / 'last.pt').exists()
             and (place / 'results' / 'a' / 'last.pt').read_text() == '5')
    first.send_signal(signal.SIGUSR1)
    assert first.wait() == 75
    assert ['scontrol', ['requeue', '101'], ''] in [json.loads(line) for line in open(calls)]
    again = subprocess.run(['bash', '-c', script], cwd=place, env=env, timeout=HANG)
    assert again.returncode == 0 and read_metrics(place / 'results' / 'a')[2]['done']
    accounted = '101|COMPLETED|0:0\n102|RUNNING|0:0'
    answers.write_text(json.dumps({'squeue': '102|RUNNING\n103|PENDING', 'sacct': accounted}))
    status = manage('status', PATH=path).stdout
    assert re.search(r'^a +done', status, re.MULTILINE) and re.search(r'^c +running +job 102', status, re.MULTILINE)
    assert re.search(r'^b +pending +job 103', status, re.MULTILINE)
    assert manage('stop', 'c', PATH=path).returncode == 0
    assert ['scancel', ['--batch', '--signal=TERM', '102'], ''] in [json.loads(line) for line in open(calls)]
    answers.write_text(json.dumps({'sacct': '103|OUT_OF_MEMORY|0:125'}))
    (place / 'results' / 'b' / 'log.txt').write_text('Killed\n')
    assert re.search(r'^b +failed +OUT_OF_MEMORY 0:125: Killed', manage('status', PATH=path).stdout, re.MULTILINE)


def test_no_job_is_submitted_twice_after_slurm_refuses_one(place, manage):
    calls = place / 'calls'
    (place / 'bin').mkdir()
    (place / 'bin' / 'sbatch').write_text(f'#!/bin/sh\necho "$*" >> {calls}\n'
                                          'case "$*" in *name=b*) echo "QOS limit" >&2; exit 1;; esac; echo 7\n')
    for name in ('squeue', 'sacct'):
        (place / 'bin' / name).write_text('#!/bin/sh\n[ $(basename $0) = squeue ] && echo "7|PENDING"\n')
    for path in (place / 'bin').iterdir():
        path.chmod(0o755)
    write_list(place, 'a: config/toy.py', 'b: config/toy.py')
    for _ in range(2):
        done = manage('run', '--launcher=slurm', PATH=f'{place / "bin"}:{os.environ["PATH"]}')
        assert done.returncode == 2 and 'sbatch: QOS limit' in done.stderr
    assert calls.read_text().count('name=a') == 1 and states(place)['a'] == 'submitted'


def test_the_list_in_the_project_can_be_pasted_and_needs_no_torch(tmp_path):
    blocker = tmp_path / 'torch.py'
    blocker.write_text('raise SystemExit("torch was imported")')
    done = python(os.path.join(ROOT, 'run_manager.py'), 'run', '--dry_run', cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.startswith('python train.py config/quickstart.py ')
        assert python('train.py', *line.split()[2:], '--help', cwd=ROOT).returncode == 0


def test_real_runs_survive_the_manager(corpus_dir, tmp_path):
    toy = f'{" ".join(TOY)} --dataset={corpus_dir}'
    (tmp_path / 'mine.conf').write_text(f'a: {toy} --max_iters=100 --lr_decay_iters=100\n'
                                        f'b: {toy} --init_from=results/a after=a\n')
    words = [sys.executable, os.path.join(ROOT, 'run_manager.py'), 'run', '--list=mine.conf']
    first = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    metrics = tmp_path / 'results' / 'a' / 'metrics.jsonl'
    wait_for(lambda: metrics.exists() and '"iter": 20,' in metrics.read_text())
    pid = json.loads((tmp_path / 'results' / 'mine.json').read_text())['a']['pid']
    os.kill(pid, signal.SIGSTOP)
    first.kill()
    first.wait()
    second = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    status = ['status', '--list=mine.conf']
    wait_for(lambda: 'nobody works' not in python(words[1], *status, cwd=tmp_path).stdout)
    os.kill(pid, signal.SIGCONT)
    output = finish(second)
    assert second.returncode == 0, output
    assert len(read_metrics(tmp_path / 'results' / 'a')[0]) == 100
    assert read_metrics(tmp_path / 'results' / 'b')[2]['done']
    assert (tmp_path / 'results' / 'a' / 'log.txt').read_text().count('$ python') == 1, 'it was found alive'
