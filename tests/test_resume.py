"""A run that is killed, stopped or moved to other processes ends as the one that nothing ever stopped."""
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from common import checkpoint as checkpoint_file
from conftest import DEMANDING, assert_same_run, read_metrics
from running import HOOKED, TRAIN, ok


def resumed_at(done):
    """The iteration at which a run went on; None if it began."""
    return next((int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith('resuming')), None)


# where each run is killed, and where the next one goes on: the states of 5, 10, ... are saved after their evaluation
KILLS = [('tokens per iteration', None), ('step 0:', None), ('iter 3:', None), ('iter 7:', 5),
         ('tokens per iteration', 5), ('step 15:', 10), ('iter 19:', 15)]


def test_killed_again_and_again_it_ends_as_if_it_never_was(hooked, uninterrupted, tmp_path):
    went_on = []
    for line, _ in KILLS:
        killed = hooked(f'when_printed({line!r}, die)', '--init_from=auto', settings=DEMANDING)
        assert killed.returncode == -signal.SIGKILL and line in killed.stdout.splitlines()[-1], killed.stderr
        went_on.append(resumed_at(killed))
    done = ok(hooked('', '--init_from=auto', settings=DEMANDING))
    assert [*went_on[1:], resumed_at(done)] == [after for _, after in KILLS]
    assert_same_run(tmp_path / 'out', uninterrupted)


# counts the calls and returns of functions, and dies at one of them
AT_EVENT = '''
import atexit
events = 0
def count(frame, event, argument):
    global events
    events += 1
    if events == {event}: die()
atexit.register(lambda: print('events:', events))
sys.setprofile(count)
'''


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_killed_at_any_of_200_moments_it_ends_as_if_it_never_was(hooked, uninterrupted, tmp_path, seed):
    dice, kills, run = random.Random(seed), 0, 0
    whole = hooked(AT_EVENT.format(event=0), '--out_dir=counted', settings=DEMANDING)
    events = int(whole.stdout.rpartition('events: ')[2])
    while kills < 50:
        done = hooked(AT_EVENT.format(event=dice.randrange(1, events)), f'--out_dir=out{run}', '--init_from=auto',
                      settings=DEMANDING)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        log = tmp_path / f'out{run}' / 'metrics.jsonl'
        if log.exists() and '"done": true' in log.read_text():  # it may still have been killed
            assert_same_run(tmp_path / f'out{run}', uninterrupted)
            run += 1
    assert hooked('', f'--out_dir=out{run}', '--init_from=auto', settings=DEMANDING).returncode == 0
    assert_same_run(tmp_path / f'out{run}', uninterrupted)


def test_told_to_stop_it_saves_and_goes_on_later(hooked, uninterrupted, tmp_path):
    for name, at in (('SIGTERM', 3), ('SIGINT', 8), ('SIGUSR1', 13)):
        told = hooked(f"when_printed('iter {at}:', lambda: os.kill(os.getpid(), signal.{name}))", '--init_from=auto',
                      settings=DEMANDING)
        assert told.returncode == 75 and '--init_from=auto' in told.stdout, told.stderr
        assert checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['iter_num'] == at + 1
        assert read_metrics(tmp_path / 'out')[0][-1]['iter'] == at
    assert hooked('', '--init_from=auto', settings=DEMANDING).returncode == 0
    assert_same_run(tmp_path / 'out', uninterrupted)


def test_a_closed_terminal_does_not_end_a_run(hooked, hooked_ranks, tmp_path):
    """Under torchrun, which ends its processes then, it saves."""
    hang_up = "when_printed('iter 2:', lambda: os.kill(os.getpid(), signal.SIGHUP))"
    ok(hooked(hang_up, '--max_iters=4'))
    assert read_metrics(tmp_path / 'out')[2]['done']
    told = hooked_ranks(hang_up, '--out_dir=two', '--max_iters=9')
    assert [one.returncode for one in told] == [75, 75], told[0].stderr


def test_a_second_ctrl_c_stops_at_once(hooked):
    """In the middle of an evaluation. Two of them within a second are one: torchrun passes on what all have seen."""
    done = hooked('''
import types
from common.training import guard
now, passes = 0.0, 0
guard.time = types.SimpleNamespace(monotonic=lambda: now)
def forward(self, idx, targets=None, original=model.GPT.forward):
    global now, passes
    passes += 1
    now = {2: 10.0, 3: 10.9, 4: 11.1}.get(passes, now)
    if passes in (2, 3, 4):
        print('Ctrl-C', passes, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
    return original(self, idx, targets)
model.GPT.forward = forward
''')
    assert done.returncode == -signal.SIGINT and done.stdout.endswith('Ctrl-C 4\n'), done.stdout
    assert done.stdout.count('SIGINT: saving after this iteration (Ctrl-C again: stop at once)') == 1


# the first rank waits, in iteration 12, until it is told to stop
WAIT_FOR_A_SIGNAL = '''
import time
from common.training import guard
told = []
def note(self, *signal, original=guard.StopSignal.note):
    original(self, *signal)
    told.append(signal)
def wait():
    while not told: time.sleep(0.01)
guard.StopSignal.note = note
when_printed('iter 12:', wait)
'''


def test_two_processes_stop_together_and_any_number_goes_on(hooked, corpus_dir, tmp_path):
    plain = [*DEMANDING, '--dropout=0.0']  # which is drawn for each process, so that it would make a difference
    torchrun = [sys.executable, '-u', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
                '--signals-to-handle=SIGTERM,SIGINT,SIGUSR1']
    with subprocess.Popen([*torchrun, HOOKED, WAIT_FOR_A_SIGNAL, TRAIN, *plain, f'--dataset={corpus_dir}'],
                          cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if 'iter 12:' in line:
                process.send_signal(signal.SIGUSR1)  # torchrun passes it on, and ends with a code of its own
    assert process.returncode != 0 and 'stopped' in ''.join(seen), ''.join(seen)
    # the ranks tell each other in iteration 13, and know it after the next one
    assert checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['iter_num'] == 15
    assert resumed_at(hooked('', '--init_from=auto', settings=plain)) == 15
    assert hooked('', '--out_dir=whole', settings=plain).returncode == 0
    moved, whole = (read_metrics(tmp_path / name) for name in ('out', 'whole'))
    assert moved[2]['done'] and len(moved[0]) == len(whole[0]) == 20
    assert np.allclose([line['loss'] for line in moved[0]], [line['loss'] for line in whole[0]], atol=1e-4)
    assert np.allclose([line['val_loss'] for line in moved[1]], [line['val_loss'] for line in whole[1]], atol=1e-4)


@pytest.mark.slow
def test_two_processes_killed_end_as_two_that_were_not(hooked_ranks, tmp_path):
    kill = '''
from common.training import guard
def check_update(self, iter_num, *rest, original=guard.StepGuard.check_update, **more):
    if iter_num == 13: die()
    return original(self, iter_num, *rest, **more)
guard.StepGuard.check_update = check_update
'''
    codes = [one.returncode for one in hooked_ranks(kill, settings=DEMANDING)]
    assert -signal.SIGKILL in codes and all(codes)  # the other may have lost its connection first
    for out_dir, after in (('out', 10), ('whole', None)):
        done = hooked_ranks('', f'--out_dir={out_dir}', '--init_from=auto', settings=DEMANDING)
        assert [one.returncode for one in done] == [0, 0] and resumed_at(done[0]) == after, done[0].stderr
    assert_same_run(tmp_path / 'out', tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('recipe', [['--modern=True', '--optimizer=muon'], ['--modern=False', '--optimizer=adamw']])
def test_split_by_fsdp_it_is_the_same_run_with_the_same_files(hooked, hooked_ranks, tmp_path, recipe):
    plain = [*DEMANDING, *recipe, '--dropout=0.0', '--max_iters=10', '--init_from=auto']
    for args in (['--out_dir=whole'], ['--out_dir=out_of', '--fsdp=True', '--max_iters=5'], ['--out_dir=out_of'],
                 ['--out_dir=into', '--max_iters=5'], ['--out_dir=into', '--fsdp=True']):
        split = '--fsdp=True' in args
        for done in hooked_ranks('', *args, settings=plain) if split else [hooked('', *args, settings=plain)]:
            assert done.returncode == 0, done.stderr
    whole, state = read_metrics(tmp_path / 'whole'), checkpoint_file.load(str(tmp_path / 'whole' / 'last.pt'))
    for name in ('out_of', 'into'):
        steps, evaluations, _ = read_metrics(tmp_path / name)
        assert np.allclose([line['loss'] for line in steps], [line['loss'] for line in whole[0]], atol=1e-4)
        assert np.allclose([line['grad_norm'] for line in steps], [line['grad_norm'] for line in whole[0]], rtol=1e-3)
        assert [e['val_loss'] for e in evaluations] == pytest.approx([e['val_loss'] for e in whole[1]], abs=1e-4)
        ours = checkpoint_file.load(str(tmp_path / name / 'last.pt'))
        assert {k: v.shape for k, v in ours['model'].items()} == {k: v.shape for k, v in state['model'].items()}
        assert ours['optimizer']['param_groups'] == state['optimizer']['param_groups']
