"""What goes wrong at night: crashes within a save, full disks, damaged files, changed data, divergence, no memory."""
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from common import checkpoint as checkpoint_file
from common.training import guard, states
from conftest import DEMANDING, TOY, assert_same_run, learned, read_metrics, tiny_state
from running import ok

# Where a save can be cut off. `saves` counts files: two for each evaluation with a new best, ckpt.pt and last.pt; the
# third or fourth is of iteration 10. prev.pt exists from iteration 10 on.
COUNT = 'saves = 0\nwhole_save = torch.save\n'
CRASHES = {
    'before the temporary file': COUNT + '''
def save(checkpoint, path, original=checkpoint.save):
    global saves
    saves += 1
    if saves == 3: die()
    original(checkpoint, path)
checkpoint.save = save''',
    'midway through it': COUNT + '''
def save(values, f):
    global saves
    saves += 1
    whole_save(values, f)
    if saves == 3:
        f.truncate(f.tell() // 2)
        f.flush()
        die()
torch.save = save''',
    'after it, before fsync': COUNT + '''
def fsync(number, original=os.fsync):
    global saves
    saves += 1
    if saves == 10: die()
    original(number)
os.fsync = fsync''',
    'before the first rename': '''
def replace(source, target, original=os.replace):
    if target.endswith('prev.pt') and os.path.exists(target): die()
    original(source, target)
os.replace = replace''',
    'between the two renames': '''
def replace(source, target, original=os.replace):
    if source.endswith('last.pt.new') and os.path.exists(target.replace('last', 'prev')): die()
    original(source, target)
os.replace = replace''',
    'between ckpt.pt and last.pt': '''
def replace(source, target, original=os.replace):
    original(source, target)
    if target.endswith('ckpt.pt') and os.path.exists(target.replace('ckpt', 'prev')): die()
os.replace = replace''',
    'between ckpt.pt and last.pt, at the end': '''
def replace(source, target, original=os.replace):
    original(source, target)
    if target.endswith('ckpt.pt') and os.path.exists(target.replace('ckpt.pt', 'samples/iter_000020.txt')): die()
os.replace = replace''',
    'right after': '''
def replace(source, target, original=os.replace):
    original(source, target)
    if source.endswith('last.pt.new') and os.path.exists(target.replace('last', 'prev')): die()
os.replace = replace''',
}


@pytest.mark.parametrize('moment', CRASHES)
def test_a_crash_within_a_save_loses_nothing(hooked, uninterrupted, tmp_path, moment):
    crashed = hooked(CRASHES[moment], '--init_from=auto', settings=DEMANDING)
    assert crashed.returncode == -signal.SIGKILL, 'this crash did not happen: ' + crashed.stderr
    resumed = hooked('', '--init_from=auto', settings=DEMANDING)
    assert resumed.returncode == 0 and 'resuming' in resumed.stdout, resumed.stderr
    assert_same_run(tmp_path / 'out', uninterrupted)


def test_a_damaged_state_gives_way_to_the_one_before_it(hooked, uninterrupted, tmp_path):
    assert hooked('', '--max_iters=10', settings=DEMANDING).returncode == 0
    last = tmp_path / 'out' / 'last.pt'
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # a single bit, somewhere in a tensor
    last.write_bytes(content)
    resumed = hooked('', '--init_from=resume', settings=DEMANDING)
    assert 'last.pt is damaged or not there: out/prev.pt takes its place' in resumed.stdout
    assert_same_run(tmp_path / 'out', uninterrupted)


def test_a_full_disk_leaves_what_was_saved_and_says_what_was_needed(hooked, tmp_path):
    assert hooked('', '--max_iters=10', '--eval_interval=5').returncode == 0
    files = {name: (tmp_path / 'out' / name).read_bytes() for name in ('last.pt', 'prev.pt', 'ckpt.pt')}
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))'
    full = hooked(limit, '--init_from=resume', '--max_iters=30')
    assert full.returncode == 1 and 'Traceback' not in full.stderr, full.stderr
    assert 'not saved: ' in full.stdout and 'a full state needs about 0.3 MB' in full.stdout
    assert 'iter 29' in full.stdout, 'the run went on, in case somebody makes room'
    assert files == {name: (tmp_path / 'out' / name).read_bytes() for name in files}
    assert not any(name.endswith('.tmp') for name in os.listdir(tmp_path / 'out'))


@pytest.mark.parametrize('full_at', [1, 2], ids=['ckpt.pt', 'last.pt'])
def test_only_a_best_that_was_saved_counts(hooked, tmp_path, full_at):
    """The disk is full at one evaluation and has room at the next: ckpt.pt and best_val_loss stay the same thing."""
    full_once = f'''
original, calls = checkpoint.save, 0
def save(values, path):
    global calls
    calls += 1
    if calls == {full_at}: raise OSError(28, 'No space left on device')
    original(values, path)
checkpoint.save = save'''
    # the second evaluation would be the best; after it the learning rate ruins the model
    done = hooked(full_once, '--max_iters=30', '--decay_lr=False', '--eval_interval=10')
    assert done.returncode == 0 and done.stdout.count('not saved: ') == 1, done.stdout
    best = checkpoint_file.load(str(tmp_path / 'out' / 'ckpt.pt'))
    evaluations, end = read_metrics(tmp_path / 'out')[1:]
    assert best['best_val_loss'] == end['best_val_loss']
    assert best['best_val_loss'] == [e['val_loss'] for e in evaluations if e['iter'] == best['iter_num']][0]
    if full_at == 4:
        assert best['best_val_loss'] == min(e['val_loss'] for e in evaluations)


def test_a_small_disk_is_named_at_the_start(tmp_path, monkeypatch, capsys):
    shape = dict(n_layer=1, n_embd=250, block_size=1000, bias=False, modern=False)  # 1.0 million parameters
    run = dict(shape, optimizer='adamw', max_iters=4, keep_interval=1)
    for free, said in ((7 * 10**7, False), (5 * 10**7, True)):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(2 * free, free, free))
        guard.check_disk(str(tmp_path), run, vocab_size=0)  # (1 + 4 + 3 x 3) x 4 MB = 56 MB
        assert (f'warning: this run may write 0.1 GB into {tmp_path}' in capsys.readouterr().out) == said


def test_data_that_changed_since_the_run_began_is_refused_unless_allowed(run, corpus_dir, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(corpus_dir, data)
    args = ['train.py', *TOY, f'--dataset={data}', '--out_dir=out']
    assert run(*args, '--max_iters=10').returncode == 0
    ids = np.fromfile(data / 'train.bin', dtype='<u2')
    ids[:100] = ids[100:200]
    ids.tofile(data / 'train.bin')
    done = run(*args, '--init_from=resume')
    assert done.returncode == 2 and 'is not the file that its meta.json describes' in done.stderr
    meta = json.loads((data / 'meta.json').read_text())
    import hashlib
    meta['sha256']['train.bin'] = hashlib.sha256((data / 'train.bin').read_bytes()).hexdigest()
    (data / 'meta.json').write_text(json.dumps(meta))
    done = run(*args, '--init_from=resume')
    assert done.returncode == 2 and 'train.bin has changed since this run began' in done.stderr
    assert run(*args, '--init_from=resume', '--allow_data_change=True').returncode == 0


# the loss of iteration 7 (two micro-batches each), or of all from there on, is spoilt
SPOIL = '''
forwards = 0
def forward(self, idx, targets=None, original=model.GPT.forward):
    global forwards
    logits, loss = original(self, idx, targets)
    if self.training:
        forwards += 1
        if {condition}:
            loss = loss * {factor}
    return logits, loss
model.GPT.forward = forward
'''


def test_an_update_that_is_not_finite_is_skipped_and_recorded(hooked, corpus_dir, tmp_path):
    done = ok(hooked(SPOIL.format(condition='forwards == 15', factor='float("nan")')))
    assert 'iter 7: loss nan, update skipped' in done.stdout
    spike, = [json.loads(line) for line in (tmp_path / 'out' / 'spikes.jsonl').read_text().splitlines()]
    assert spike['iter'] == 7 and spike['loss'] is None and len(spike['starts']) == len(spike['texts']) == 8
    ids = np.fromfile(os.path.join(corpus_dir, 'train.bin'), dtype='<u2')
    chars = json.load(open(os.path.join(corpus_dir, 'meta.json')))['chars']
    assert spike['texts'][3] == ''.join(chars[i] for i in ids[spike['starts'][3]:][:16])
    state = torch.load(tmp_path / 'out' / 'last.pt', weights_only=True)
    assert all(value.isfinite().all() for value in state['model'].values())
    assert {int(moments['step']) for moments in state['optimizer']['state'].values()} == {19}
    steps, _, end = read_metrics(tmp_path / 'out')
    assert steps[7]['loss'] is None and end['done'] and learned(tmp_path / 'out')


def test_with_loss_scaling_a_loss_that_is_not_finite_is_skipped_too(hooked, tmp_path):
    """Its gradients may be finite, so that GradScaler sees nothing."""
    scaled = '''
class Scaler(torch.amp.GradScaler):
    def __init__(self, device, enabled):
        super().__init__(device, init_scale=8.0)
torch.amp.GradScaler = Scaler
'''
    spoil = SPOIL.replace('loss * ', 'loss + ').format(condition='forwards == 15', factor='float("inf")')
    done = ok(hooked(scaled + spoil))
    assert 'iter 7: ' in done.stdout.partition('update skipped')[0].split('\n')[-1], done.stdout
    state = torch.load(tmp_path / 'out' / 'last.pt', weights_only=True)
    assert state['scaler'] and {int(moments['step']) for moments in state['optimizer']['state'].values()} == {19}


def test_a_run_that_diverges_stops_and_keeps_its_last_good_state(hooked, tmp_path):
    done = hooked(SPOIL.format(condition='forwards >= 25', factor='float("inf")'), '--max_skips=4', '--max_iters=50')
    assert done.returncode == 1 and 'stopped: 4 updates in a row had to be skipped' in done.stdout
    assert 'Traceback' not in done.stderr
    assert [json.loads(line)['iter'] for line in open(tmp_path / 'out' / 'spikes.jsonl')] == [12, 13, 14, 15]
    for name in ('last.pt', 'ckpt.pt'):
        saved = checkpoint_file.load(str(tmp_path / 'out' / name))
        assert saved['iter_num'] == 10 and all(value.isfinite().all() for value in saved['model'].values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, capsys):
    def state(value, iter_num):
        weights = tiny_state(iter_num, best_val_loss=1.0)
        weights['model']['transformer.ln_f.weight'][2] = value
        return weights, dict(weights, optimizer={})
    assert states.save_run(str(tmp_path), *state(1.0, 1), best=True, keep_interval=1) == (True, True)
    for value in (math.nan, math.inf):
        assert states.save_run(str(tmp_path), *state(value, 2), best=True, keep_interval=1) == (False, False)
    assert sorted(os.listdir(tmp_path)) == ['ckpt.pt', 'iter_000001.pt', 'last.pt']
    assert states.load_to_resume('resume', str(tmp_path))[0]['iter_num'] == 1
    assert capsys.readouterr().out.count('not saved: the weights are no longer finite') == 2


def test_moments_that_are_not_finite_are_never_saved(tmp_path):
    state = tiny_state(1, best_val_loss=1.0, optimizer={'state': {0: {'exp_avg': torch.tensor([math.nan])}}})
    assert states.save_run(str(tmp_path), state, state, best=True, keep_interval=0) == (False, False)


def test_a_spike_of_the_loss_is_skipped_where_that_was_asked_for(hooked, tmp_path):
    spoil = SPOIL.format(condition='forwards in (231, 232)', factor='30')
    args = ['--max_iters=125', '--lr_decay_iters=125', '--eval_interval=50']
    done = hooked(spoil, '--spike_z=6.0', *args)
    assert 'iter 115: loss ' in done.stdout and 'update skipped' in done.stdout, done.stdout + done.stderr
    assert len((tmp_path / 'out' / 'spikes.jsonl').read_text().splitlines()) == 1
    assert len(torch.load(tmp_path / 'out' / 'last.pt', weights_only=True)['recent_losses']) == 100
    assert 'skipped' not in hooked(spoil, *args).stdout


def test_the_guard_judges_as_its_docstring_says():
    step_guard = guard.StepGuard(3.0, [1.0, 3.0] * 50, guard.StopSignal())  # mean 2, deviation 1
    good, bad = torch.tensor(1.0), torch.tensor(math.inf)
    for loss, norm, scaled, skip in ((4.9, good, False, False), (5.1, good, False, True), (4.9, bad, False, True),
                                     (4.9, bad, True, False), (math.nan, good, True, True)):
        assert bool(step_guard.check_update(7, torch.tensor(loss), torch.tensor(0.0), norm, scaled)) == skip
        assert step_guard.fetch_skipped() == (7 if skip else None)
        assert step_guard.in_a_row == int(skip) and step_guard.fetch_skipped() is None
        step_guard.in_a_row, step_guard.losses = 0, [1.0, 3.0] * 50


def test_what_saves_nothing_ends_at_a_signal(monkeypatch):
    handlers = {}
    monkeypatch.setattr(signal, 'signal', handlers.__setitem__)
    guard.StopSignal().install(saves=False)
    assert set(handlers.values()) == {signal.SIG_DFL}


def test_patience_ends_a_run_as_finished(hooked, tmp_path):
    still = ['--learning_rate=0.0', '--min_lr=0.0', '--eval_interval=2', '--max_iters=1000']
    ok(hooked('', '--patience=3', *still))
    _, evaluations, end = read_metrics(tmp_path / 'out')
    assert [line['iter'] for line in evaluations] == [0, 2, 4, 6] and end['done'] and end['iter'] == 6
    again = hooked('', '--patience=3', '--init_from=auto', *still)
    assert again.returncode == 0 and 'iter 6:' not in again.stdout


def test_too_little_memory_ends_with_what_to_change(hooked):
    done = hooked('''
def forward(self, idx, targets=None):
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.')
model.GPT.forward = forward''')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    for part in ('batch_size=4', '--batch_size=2 --gradient_accumulation_steps=4', '--gradient_checkpointing=True',
                 'Tried to allocate 9 GiB'):
        assert part in done.stderr


def test_a_stop_in_the_last_iteration_does_not_skip_the_last_evaluation(hooked, tmp_path):
    stop = SPOIL.format(condition='forwards == 40 and not os.kill(os.getpid(), signal.SIGTERM)', factor='1')
    assert hooked(stop).returncode == 75
    assert 'done' not in read_metrics(tmp_path / 'out')[2]
    assert hooked('', '--init_from=auto').returncode == 0
    _, evaluations, end = read_metrics(tmp_path / 'out')
    assert [line['iter'] for line in evaluations] == [0, 10, 20] and end['done']


def test_two_runs_cannot_write_to_one_folder(hooked, tmp_path):
    (tmp_path / 'out').mkdir()
    lock = states.claim_out_dir(str(tmp_path / 'out'))
    done = hooked('')
    assert done.returncode == 2 and "another run is writing to out_dir='out'" in done.stderr
    lock.release()
    assert hooked('', '--max_iters=1').returncode == 0
