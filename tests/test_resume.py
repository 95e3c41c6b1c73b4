"""A run that is killed, stopped or moved to other processes ends as the one that nothing ever stopped."""
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from common import checkpoint as checkpoint_file
from conftest import DEMANDING, ROOT, assert_same_run, read_metrics

TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
            '--signals-to-handle=SIGTERM,SIGINT,SIGUSR1']


def kill_all(folder):
    """SIGKILL to every process that works in a folder: torchrun gives its children sessions of their own."""
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if os.readlink(f'/proc/{pid}/cwd') == str(folder):
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass  # it has ended already, or is not ours


@pytest.fixture
def start(tmp_path, corpus_dir):
    """start(...): a DEMANDING run as one or more processes; returns the first, whose lines can be read as they come."""
    def start(*args, launcher=(), processes=1):
        command = [sys.executable, '-u', *launcher, os.path.join(ROOT, 'train.py'), *DEMANDING,
                   f'--dataset={corpus_dir}', '--out_dir=out', '--init_from=auto', *args]
        first = None
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        for rank in reversed(range(processes)):  # several are started as torchrun would, only sooner
            env = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes,
                       MASTER_ADDR='127.0.0.1', MASTER_PORT=port) if processes > 1 else {}
            first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True,
                                     env={**os.environ, **{key: str(value) for key, value in env.items()}})
        return first
    yield start
    kill_all(tmp_path)


def read_until(process, text):
    """The lines that a process prints up to the one with `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f'{text!r} never came: ' + ''.join(lines))


def finish(process):
    """(exit code, the rest of its output) of a process left to end by itself."""
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


# 20 kills take a minute; NANOGPT_KILLS=200 is for a quiet evening
def test_killed_again_and_again_it_ends_as_if_it_never_was(start, uninterrupted, tmp_path):
    kills, dice = int(os.environ.get('NANOGPT_KILLS', 20)), random.Random(0)
    run, resumed_at = 0, set()
    for kill in range(kills):
        process = start(f'--out_dir=out{run}')
        if kill % 3 == 0:
            time.sleep(dice.uniform(0, 3))  # during start-up
        else:
            started = read_until(process, 'tokens per iteration')
            resumed_at.update(line.split()[-1] for line in started if 'resuming' in line)
            time.sleep(dice.uniform(0, 0.5))  # a whole run takes one to two seconds from here
        process.kill()
        process.wait()
        log = tmp_path / f'out{run}' / 'metrics.jsonl'
        if log.exists() and '"done": true' in log.read_text():
            assert_same_run(tmp_path / f'out{run}', uninterrupted)
            run += 1
    code, output = finish(start(f'--out_dir=out{run}'))
    assert code == 0, output
    assert_same_run(tmp_path / f'out{run}', uninterrupted)
    assert len(resumed_at) >= 3, 'the kills were to fall all over the run'


def test_told_to_stop_it_saves_and_goes_on_later(start, uninterrupted, tmp_path):
    for number, line in ((signal.SIGTERM, 'iter 6:'), (signal.SIGINT, 'iter 16:'), (signal.SIGUSR1, 'iter 26:')):
        process = start()
        read_until(process, line)
        process.send_signal(number)
        code, output = finish(process)
        assert code == 75 and '--init_from=auto' in output, output
        saved = checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['iter_num']
        assert saved > int(line[5:-1]) and read_metrics(tmp_path / 'out')[0][-1]['iter'] == saved - 1
    assert finish(start())[0] == 0
    assert_same_run(tmp_path / 'out', uninterrupted)


def test_a_second_ctrl_c_stops_at_once(start):
    process = start('--eval_iters=100000')  # in the first evaluation, which would take minutes
    read_until(process, 'tokens per iteration')
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    read_until(process, 'SIGINT: saving after this iteration')
    time.sleep(1.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


def test_two_processes_stop_together_and_any_number_goes_on(start, tmp_path):
    plain = ['--dropout=0.0']  # which is drawn for each process, so that it would make a difference
    process = start(*plain, launcher=TORCHRUN)
    read_until(process, 'iter 12:')
    process.send_signal(signal.SIGUSR1)  # torchrun passes it on, and ends with a code of its own
    assert finish(process)[0] != 0
    saved = checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['iter_num']
    assert 13 <= saved < 40
    process = start(*plain)
    assert f'resuming out/last.pt at iteration {saved}' in read_until(process, 'resuming')[-1]
    for process in (process, start('--out_dir=whole', *plain)):
        code, output = finish(process)
        assert code == 0, output
    moved, whole = (read_metrics(tmp_path / name) for name in ('out', 'whole'))
    assert np.allclose([line['loss'] for line in moved[0]], [line['loss'] for line in whole[0]], atol=1e-4)
    assert np.allclose([line['val_loss'] for line in moved[1]], [line['val_loss'] for line in whole[1]], atol=1e-4)


def test_two_processes_killed_end_as_two_that_were_not(start, tmp_path):
    for out_dir, killed in (('--out_dir=whole', False), ('--out_dir=killed', True)):
        if killed:
            process = start(out_dir, processes=2)
            read_until(process, 'iter 12:')
            kill_all(tmp_path)
            process.wait()
        code, output = finish(start(out_dir, processes=2))
        assert code == 0, output
    assert_same_run(tmp_path / 'killed', tmp_path / 'whole')


@pytest.mark.parametrize('recipe', [['--modern=True', '--optimizer=muon'], ['--modern=False', '--optimizer=adamw']])
def test_split_by_fsdp_it_is_the_same_run_with_the_same_files(start, tmp_path, recipe):
    plain = [*recipe, '--dropout=0.0', '--sample_prompts=the cat', '--max_iters=20']
    fsdp = dict(processes=2)
    for args, several in ((['--out_dir=whole'], {}),
                          (['--out_dir=out_of', '--fsdp=True', '--max_iters=10'], fsdp), (['--out_dir=out_of'], {}),
                          (['--out_dir=into', '--max_iters=10'], {}), (['--out_dir=into', '--fsdp=True'], fsdp)):
        code, output = finish(start(*plain, *args, **several))
        assert code == 0, output
    whole, state = read_metrics(tmp_path / 'whole'), checkpoint_file.load(str(tmp_path / 'whole' / 'last.pt'))
    for name in ('out_of', 'into'):
        steps, evaluations, _ = read_metrics(tmp_path / name)
        assert np.allclose([line['loss'] for line in steps], [line['loss'] for line in whole[0]], atol=1e-4)
        assert np.allclose([line['grad_norm'] for line in steps], [line['grad_norm'] for line in whole[0]], rtol=1e-3)
        assert [e['val_loss'] for e in evaluations] == pytest.approx([e['val_loss'] for e in whole[1]], abs=1e-4)
        ours = checkpoint_file.load(str(tmp_path / name / 'last.pt'))
        assert {k: v.shape for k, v in ours['model'].items()} == {k: v.shape for k, v in state['model'].items()}
        assert ours['optimizer']['param_groups'] == state['optimizer']['param_groups']
