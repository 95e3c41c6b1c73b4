"""train.py as a user runs it, at toy size: what it promises, and what it refuses."""
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch

from common import checkpoint as checkpoint_file
from common import settings
from conftest import DEMANDING, TOY, assert_same_run, learned, make_dataset, read_metrics, slow
from model import GPT
from running import ROOT, TRAIN, ok, python, ranks


def losses(out_dir):
    return [line['loss'] for line in read_metrics(out_dir)[0]]


def grad_norms(out_dir):
    return [line['grad_norm'] for line in read_metrics(out_dir)[0]]


def weights(path):
    return checkpoint_file.load(str(path))['model']


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# what a run leaves behind

def test_a_run_leaves_what_the_design_promises(trained):
    assert sorted(os.listdir(trained)) == ['.lock', 'ckpt.pt', 'last.pt', 'metrics.jsonl', 'prev.pt', 'settings.json']
    training, evaluations, end = read_metrics(trained)
    assert [line['iter'] for line in training] == list(range(20))
    assert [line['iter'] for line in evaluations] == [0, 10, 20]
    assert set(training[0]) == {'iter', 'loss', 'lr', 'grad_norm', 'ms', 'tok_s', 'mfu', 'mem_gb', 'tokens', 'train_s'}
    assert set(evaluations[0]) == {'iter', 'train_loss', 'val_loss', 'val_ppl', 'val_acc', 'bits_per_byte', 'tokens',
                                   'train_s'}
    assert end['done'] and end['iter'] == 20 and end['best_val_loss'] == min(e['val_loss'] for e in evaluations)
    assert training[-1]['tokens'] == 20 * 2 * 4 * 16 and training[-1]['mfu'] is None
    assert learned(trained)


def test_exactly_max_iters_updates_and_a_whole_state(trained):
    state = torch.load(os.path.join(trained, 'last.pt'), weights_only=True)
    assert {'model', 'optimizer', 'model_args', 'iter_num', 'best_val_loss', 'config', 'scaler', 'meta',
            'format'} <= set(state)
    assert state['iter_num'] == 20
    assert {int(moments['step']) for moments in state['optimizer']['state'].values()} == {20}
    assert state['config']['device'] == 'cpu' and state['config']['dtype'] == 'float32'
    assert 'optimizer' not in torch.load(os.path.join(trained, 'ckpt.pt'), weights_only=True)
    assert not any('_orig_mod' in key or 'module' in key for key in state['model'])


def test_a_run_shorter_than_eval_interval_is_saved_too(train, tmp_path):
    ok(train('--out_dir=out', '--max_iters=3', '--eval_interval=1000'))
    assert checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['iter_num'] == 3


def test_the_best_weights_stay_when_later_ones_are_worse(hooked, tmp_path):
    losses = '''
from common.training import guard
losses = iter([3.0, 2.0, 1.5, 2.5, 2.0])
guard.mean_scores = lambda split, *sums: (next(losses) if split == "val" else 1.0, 0.5)
'''
    assert hooked(losses, '--eval_interval=5').returncode == 0
    assert [line['val_loss'] for line in read_metrics(tmp_path / 'out')[1]] == [3.0, 2.0, 1.5, 2.5, 2.0]
    best, last = (checkpoint_file.load(str(tmp_path / 'out' / name)) for name in ('ckpt.pt', 'last.pt'))
    assert (best['iter_num'], best['best_val_loss'], last['iter_num']) == (10, 1.5, 20)
    assert not same(best['model'], last['model'])


def test_weights_are_kept_every_keep_interval(train, tmp_path):
    assert train('--out_dir=out', '--eval_interval=5', '--keep_interval=10').returncode == 0
    kept = ['iter_000010.pt', 'iter_000020.pt']
    assert sorted(n for n in os.listdir(tmp_path / 'out') if n.startswith('iter_')) == kept
    assert train('--out_dir=worse', '--eval_interval=5', '--keep_interval=10', '--always_save_checkpoint=False',
                 '--learning_rate=0.0', '--min_lr=0.0').returncode == 0
    assert sorted(n for n in os.listdir(tmp_path / 'worse') if n.startswith('iter_')) == kept


def test_samples_are_written_and_shown_at_the_end(train, tmp_path):
    done = train('--out_dir=out', '--sample_prompts=the cat|')
    assert sorted(os.listdir(tmp_path / 'out' / 'samples')) == ['iter_000000.txt', 'iter_000010.txt', 'iter_000020.txt']
    text = (tmp_path / 'out' / 'samples' / 'iter_000020.txt').read_text()
    assert text.startswith('the cat') and text.strip() in done.stdout
    assert 'python sample.py --out_dir=out' in done.stdout


def test_starting_over_sets_the_earlier_run_aside(train, tmp_path):
    train('--out_dir=out', '--max_iters=2')
    done = train('--out_dir=out', '--max_iters=3')
    assert 'out held a run already; it is now in out/previous-1' in done.stdout
    assert checkpoint_file.load(str(tmp_path / 'out' / 'previous-1' / 'last.pt'))['iter_num'] == 2
    assert checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['iter_num'] == 3
    assert len(losses(tmp_path / 'out')) == 3


# the same run, however it is cut

@pytest.mark.parametrize('scored, per_token', [({'val': {'tokens': 600, 'bytes': 1500}}, 2.5), (None, None)])
def test_bits_per_byte_follow_from_the_bytes_that_were_counted(run, corpus_dir, tmp_path, scored, per_token):
    shutil.copytree(corpus_dir, tmp_path / 'data')
    meta = json.loads((tmp_path / 'data' / 'meta.json').read_text())
    (tmp_path / 'data' / 'meta.json').write_text(json.dumps({**meta, 'scored': scored}))
    done = ok(run('train.py', *TOY, f'--dataset={tmp_path}/data', '--max_iters=1', '--out_dir=out'))
    _, evaluations, _ = read_metrics(tmp_path / 'out')
    for line in evaluations:
        expected = line['val_loss'] / math.log(2) / per_token if per_token else None
        assert line['bits_per_byte'] == expected
        assert f'bits per byte {expected:.3f}' in done.stdout if per_token else 'bits per byte' not in done.stdout
    data = json.loads((tmp_path / 'out' / 'settings.json').read_text())['data']
    assert data == {'tokenizer': 'char', 'vocab_size': meta['vocab_size'], 'val_sha256': meta['sha256']['val.bin'],
                    'val_bytes': 1500 if scored else None}


def test_evaluating_changes_nothing(train, tmp_path):
    assert train('--out_dir=out', '--dropout=0.1', '--eval_interval=3', '--sample_prompts=a dog').returncode == 0
    assert train('--out_dir=rare', '--dropout=0.1', '--eval_interval=100').returncode == 0
    assert losses(tmp_path / 'out') == losses(tmp_path / 'rare')
    assert same(weights(tmp_path / 'out' / 'last.pt'), weights(tmp_path / 'rare' / 'last.pt'))


def test_a_resumed_run_is_the_uninterrupted_run(train, trained, tmp_path):
    for args in (['--max_iters=10'], ['--init_from=resume']):
        done = ok(train('--out_dir=out', '--dropout=0.1', *args))
    assert 'at iteration 10; changed since then: max_iters 10 -> 20\n' in done.stdout
    assert train('--out_dir=whole', '--dropout=0.1').returncode == 0
    assert losses(tmp_path / 'out') == losses(tmp_path / 'whole') != losses(trained)
    assert same(weights(tmp_path / 'out' / 'last.pt'), weights(tmp_path / 'whole' / 'last.pt'))
    steps, evaluations, end = read_metrics(tmp_path / 'out')
    assert [line['iter'] for line in evaluations] == [0, 10, 20] and end['done']


def test_auto_starts_where_there_is_nothing_and_resumes_where_there_is(train, tmp_path):
    assert 'resuming' not in train('--out_dir=out', '--init_from=auto', '--max_iters=10').stdout
    assert 'resuming out/last.pt at iteration 10' in train('--out_dir=out', '--init_from=auto').stdout
    assert checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['iter_num'] == 20


def test_how_the_batch_is_cut_into_micro_batches_changes_only_rounding(train, trained, tmp_path):
    assert train('--out_dir=out', '--batch_size=2', '--gradient_accumulation_steps=4').returncode == 0
    assert np.allclose(losses(tmp_path / 'out'), losses(trained), atol=1e-4)
    assert np.allclose(grad_norms(tmp_path / 'out'), grad_norms(trained), rtol=1e-3)


# notes every place in the corpus that is read, the seed of each forward pass, and whether its gradients are to travel
RECORDER = '''
from common.training import batches
from torch.nn.parallel import DistributedDataParallel

def note(name, *lines):
    with open(f"{folder}-{{name}}.{{os.environ.get('RANK', 0)}}", "a") as f:
        f.writelines(f"{{line}}\\n" for line in lines)

class Recorder(batches.Reader):
    def __init__(self, folder, split, *rest):
        super().__init__(folder, split, *rest)
        self.split = split
    def sequences(self, starts):
        note("read", *(f"{{self.split}} {{start}}" for start in starts.flatten() if start < self.size - 1))
        return super().sequences(starts)

def forward(self, *batch, original=DistributedDataParallel.forward):
    note("seeds", torch.initial_seed())
    note("travel", self.require_backward_grad_sync)
    return original(self, *batch)

batches.Reader, DistributedDataParallel.forward = Recorder, forward
'''


def noted(tmp_path, name):
    """What RECORDER noted under a name, the lines of each rank."""
    return [path.read_text().splitlines() for path in sorted(tmp_path.glob(f'{name}.*'))]


def test_two_processes_train_as_one(hooked, hooked_ranks, tmp_path):
    args = ['--batch_size=2', '--gradient_accumulation_steps=4', '--sample_prompts=|']
    one = hooked(RECORDER.format(folder='one'), '--out_dir=one', *args)
    two = hooked_ranks(RECORDER.format(folder='two'), '--out_dir=two', *args)
    for done in (one, *two):
        assert done.returncode == 0, done.stderr
    assert two[0].stdout.count('iter 7:') == 1 and 'iter' not in two[1].stdout, 'every line once, not once a process'
    read1, read2 = sum(noted(tmp_path, 'one-read'), []), sum(noted(tmp_path, 'two-read'), [])
    assert len(read1) == 20 * 8 + 3 * 2 * 5 * 2 and sorted(read1) == sorted(read2)
    (steps1, evaluations1, _), (steps2, evaluations2, _) = (read_metrics(tmp_path / name) for name in ('one', 'two'))
    assert np.allclose([s['loss'] for s in steps1], [s['loss'] for s in steps2], atol=1e-4)
    assert np.allclose([s['grad_norm'] for s in steps1], [s['grad_norm'] for s in steps2], rtol=1e-3)
    for ours, theirs in zip(evaluations1, evaluations2, strict=True):
        assert ours['val_loss'] == pytest.approx(theirs['val_loss'], abs=1e-4)
        assert ours['val_acc'] == pytest.approx(theirs['val_acc'], abs=1e-2)
    # two micro-batches a process: the gradients of both travel with the second. Before: a token, for their places
    assert noted(tmp_path, 'two-travel') == [['True'] + ['False', 'True'] * 20] * 2


def test_every_process_and_iteration_drops_others(hooked_ranks, tmp_path):
    """As many random streams of dropout as processes, each a new one in every iteration."""
    for done in hooked_ranks(RECORDER.format(folder='two'), '--dropout=0.1', '--max_iters=4'):
        assert done.returncode == 0, done.stderr
    seeds = [rank[1:] for rank in noted(tmp_path, 'two-seeds')]  # the first is of no iteration
    assert [len(rank) for rank in seeds] == [4, 4] and len({*seeds[0], *seeds[1]}) == 8


# what options do to a run: a function of its losses, those of a run without them, its last state, its output
OPTIONS = {
    '--dtype=bfloat16': lambda ours, plain, state, out: (
        'run: cpu, bfloat16' in out and ours != plain and np.allclose(ours, plain, atol=0.05)),
    '--bias=True': lambda ours, plain, state, out: (
        all(state['model'][f'transformer.h.1.{name}.bias'].any() for name in ('attn.c_attn', 'mlp.c_proj', 'ln_1'))),
    '--activation=gelu_tanh': lambda ours, plain, state, out: (
        ours != plain and np.allclose(ours, plain, atol=0.01) and state['model_args']['activation'] == 'gelu_tanh'),
    '--modern=True': lambda ours, plain, state, out: (
        state['model']['smear'].any() and 'transformer.wpe.weight' not in state['model']),
    '--shuffle=True': lambda ours, plain, state, out: ours != plain and np.allclose(ours, plain, atol=0.3),
    '--softcap=2.0': lambda ours, plain, state, out: (
        state['model_args']['softcap'] == 2.0 and ours[0] != plain[0] and np.allclose(ours, plain, atol=0.3)),
    '--modern=True --zero_init=True': lambda ours, plain, state, out: (
        math.isclose(ours[0], math.log(state['model_args']['vocab_size']), rel_tol=1e-6)),
    '--log_interval=5': lambda ours, plain, state, out: (
        ours == plain[::5] and [line for line in range(20) if f'iter {line}: ' in out] == [0, 5, 10, 15]),
    '--modern=True --optimizer=muon --schedule=linear --dtype=bfloat16': lambda ours, plain, state, out: (
        any('momentum_buffer' in moments for moments in state['optimizer']['state'].values())),
    '--seed=1': lambda ours, plain, state, out: not np.allclose(ours[:3], plain[:3], atol=1e-3),
    '--dropout=0.1': lambda ours, plain, state, out: ours != plain and np.allclose(ours, plain, atol=0.3),
}


@pytest.mark.parametrize('options', OPTIONS)
def test_options_train_and_do_what_they_say(train, trained, tmp_path, options):
    done = train('--out_dir=out', *options.split())
    assert done.returncode == 0 and learned(tmp_path / 'out'), done.stderr
    state = torch.load(tmp_path / 'out' / 'last.pt', weights_only=True)
    assert OPTIONS[options](losses(tmp_path / 'out'), losses(trained), state, done.stdout)


def test_gradient_checkpointing_computes_the_blocks_twice_and_the_same(hooked, tmp_path):
    count = '''
import atexit
passes = 0
def residual(self, *args, original=model.Block.residual):
    global passes
    passes += self.training
    return original(self, *args)
model.Block.residual = residual
atexit.register(lambda: print('passes:', passes))
'''
    for folder, option in (('plain', '--gradient_checkpointing=False'), ('again', '--gradient_checkpointing=True')):
        done = ok(hooked(count, f'--out_dir={folder}', option, '--dropout=0.1'))
        # 20 iterations of 2 micro-batches through 2 blocks
        assert int(done.stdout.rpartition('passes: ')[2]) == (80 if folder == 'plain' else 160)
    assert np.allclose(losses(tmp_path / 'again'), losses(tmp_path / 'plain'), atol=1e-5)


@pytest.mark.parametrize('decay_lr', [True, False])
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_the_optimizer_gets_what_the_settings_say(train, tmp_path, optimizer, decay_lr):
    args = ['--max_iters=11', '--schedule=linear', '--warmup_iters=0', '--learning_rate=4e-3', '--min_lr=1e-3']
    ok(train('--out_dir=out', *args, f'--decay_lr={decay_lr}', f'--optimizer={optimizer}', '--muon_lr=0.03',
             '--embed_lr=0.02', '--vector_lr=0.01', '--weight_decay=0.07', '--beta1=0.8', '--beta2=0.9'))
    groups = torch.load(tmp_path / 'out' / 'last.pt', weights_only=True)['optimizer']['param_groups']
    lr = 2.5e-3 if decay_lr else 4e-3  # the last update is that of iteration 10: half way to lr_decay_iters
    assert read_metrics(tmp_path / 'out')[0][-1]['lr'] == pytest.approx(lr)
    if optimizer == 'adamw':  # matrices, then vectors
        expected = [dict(lr=lr, lr_ratio=1.0, weight_decay=0.07), dict(lr=lr, lr_ratio=1.0, weight_decay=0.0)]
    else:  # the blocks' fused projections, their other matrices, and AdamW's: vectors, embeddings, the output layer
        muon = dict(lr=7.5 * lr, lr_ratio=7.5, weight_decay=0.07, momentum=0.85 + 0.1 * 10 / 300)
        expected = [dict(muon, pieces=3), dict(muon, pieces=1), *(
            dict(lr=ratio * lr, lr_ratio=ratio, weight_decay=0.0, pieces=0) for ratio in (2.5, 5.0, 1.0))]
    assert len(groups) == len(expected)
    for group, values in zip(groups, expected):
        assert tuple(group['betas']) == (0.8, 0.9)
        assert {key: group[key] for key in values} == {key: pytest.approx(value) for key, value in values.items()}


def test_muons_momentum_has_warmed_up_after_300_iterations(train, tmp_path):
    args = ['--out_dir=out', '--optimizer=muon', '--lr_decay_iters=500', '--eval_interval=1000']
    assert train(*args, '--max_iters=1').returncode == 0
    last = tmp_path / 'out' / 'last.pt'
    torch.save({**torch.load(last, weights_only=True), 'iter_num': 400}, last)
    ok(train(*args, '--max_iters=401', '--init_from=resume'))
    groups = torch.load(last, weights_only=True)['optimizer']['param_groups']
    assert groups[0]['momentum'] == pytest.approx(0.95)


# a run in float16 on a CPU, where train.py refuses it, with a scale that overflows at first and soon grows again; it
# notes the scale before each iteration
FLOAT16 = '''
from common import device
device.resolve_dtype = lambda dtype, device: dtype
class Scaler(torch.amp.GradScaler):
    def __init__(self, device, enabled):
        super().__init__(device, init_scale=2.0**24, growth_interval=4, enabled=enabled)
    def update(self):
        print('scale:', self.get_scale())
        super().update()
torch.amp.GradScaler = Scaler
'''


def replay(scales, growth_interval):
    """
    How many of the updates before which the loss scale was scales[i] were skipped, and how often it grew, by
    GradScaler's rule: it halves when a gradient overflows, and doubles after so many updates without that.
    """
    skipped = grown = in_a_row = 0
    for before, after in zip(scales, scales[1:]):
        if after < before:
            assert after == before / 2
            skipped, in_a_row = skipped + 1, 0
        else:
            in_a_row += 1
            assert after == (2 * before if in_a_row == growth_interval else before)
            if in_a_row == growth_interval:
                grown, in_a_row = grown + 1, 0
    return skipped, grown


def test_in_float16_what_overflows_is_skipped_and_a_resume_is_exact(hooked, tmp_path):
    float16, scales = [*DEMANDING, '--dtype=float16'], []
    for args in (['--out_dir=whole'], ['--max_iters=10'], ['--init_from=resume']):
        done = ok(hooked(FLOAT16, *args, settings=float16))
        scales.append([float(scale) for scale in re.findall(r'^scale: (\S+)$', done.stdout, re.MULTILINE)])
    assert scales[0] == scales[1] + scales[2]
    state = torch.load(tmp_path / 'out' / 'last.pt', weights_only=True)
    skipped, grown = replay([*scales[0], state['scaler']['scale']], growth_interval=4)
    assert skipped > 0 and grown > 0, 'some updates were to overflow, and the scale to grow again'
    assert {int(moments['step']) for moments in state['optimizer']['state'].values() if 'step' in moments} == {
        20 - skipped}
    assert not os.path.exists(tmp_path / 'out' / 'spikes.jsonl') and 'update skipped' not in done.stdout
    assert learned(tmp_path / 'out')
    assert_same_run(tmp_path / 'out', tmp_path / 'whole')


# four iterations of train.py's step, in which nothing may read a tensor on the host, as that waits for a GPU; but the
# guard, which reads the result of the iteration before
NO_SYNC = '''
import contextlib
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from common.training import guard

reads = {getattr(torch.Tensor, name) for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__",
                                                  "__int__", "__index__", "nonzero", "is_nonzero")}
operators = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2")
allowed = []

class Calls(TorchFunctionMode):
    def __torch_function__(self, call, types, args=(), kwargs=None):
        assert call not in reads or allowed, f"{call.__name__} waits for the device"
        return call(*args, **(kwargs or {}))

class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        mask = "index" in str(call) and any(t is not None and t.dtype == torch.bool for t in args[1] if len(args) > 1)
        waits = mask or call.overloadpacket.__name__ in operators
        assert not waits or allowed, f"{call} waits for the device"
        return call(*args, **(kwargs or {}))

def fetch_skipped(self, original=guard.StepGuard.fetch_skipped):
    allowed.append(self.pending)
    try:
        return original(self)
    finally:
        allowed.pop()

guard.StepGuard.fetch_skipped = fetch_skipped
train = {"__file__": sys.argv[0], "__name__": "train"}
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), train)
train["train_step"](0)
if torch.cuda.is_available():
    torch.cuda.set_sync_debug_mode("error")
with Calls(), Operators():
    for i in range(1, 5):
        spoiled
        train["train_step"](i)
print("nothing waited")
sys.exit()
'''


@pytest.mark.parametrize('options', [[], ['--optimizer=muon', '--modern=True', '--spike_z=6.0'],
                                     ['--dtype=float16'], slow(['--dtype=float16', '--optimizer=muon']),
                                     slow(['--dtype=bfloat16', '--gradient_checkpointing=True', '--dropout=0.1'])])
def test_no_iteration_waits_for_the_device(hooked, options):
    code = (FLOAT16 if '--dtype=float16' in options else '').replace("print('scale:', self.get_scale())", 'pass')
    done = ok(hooked(code + NO_SYNC.replace('spoiled', 'pass'), *options))
    assert 'nothing waited' in done.stdout


def test_an_iteration_that_waited_would_be_noticed(hooked):
    for spoiled in ('torch.ones(1).item()', 'bool(torch.ones(1))', 'torch.ones(1).cpu()', 'torch.ones(2).nonzero()',
                    'torch.ones(2)[torch.ones(2) > 0]'):
        assert 'waits for the device' in hooked(NO_SYNC.replace('spoiled', spoiled)).stderr, spoiled


NOT_FUSED = '''
from common.training import guard
adamw, check = torch.optim.AdamW.__init__, guard.StepGuard.check_update
torch.optim.AdamW.__init__ = lambda self, groups, fused, **rest: adamw(self, groups, fused=False, **rest)
guard.StepGuard.check_update = lambda self, i, loss, *rest, scaled: check(self, i, loss / (i != 1), *rest, scaled)
'''


SENT = '''
original = torch.distributed.all_reduce
def all_reduce(tensor, *args, **options):
    if tensor.numel() > 1000:
        print("sent:", tensor.dtype, flush=True)
    return original(tensor, *args, **options)
torch.distributed.all_reduce = all_reduce
'''


@pytest.mark.slow
def test_gradients_travel_in_16_bits_where_that_was_asked_for(hooked_ranks, tmp_path):
    """In float16, which a float16 run alone has between CPUs; on GPUs a bfloat16 run sends bfloat16."""
    for done in hooked_ranks(SENT + FLOAT16, '--compress_gradients=True', '--dtype=float16'):
        assert set(re.findall('^sent: (.*)$', ok(done).stdout, re.MULTILINE)) == {'torch.float16'}
    assert learned(tmp_path / 'out')
    shutil.move(tmp_path / 'out', tmp_path / 'before')
    for option in ('--dtype=bfloat16', '--fsdp=True'):  # before anything is begun
        for done in hooked_ranks('', '--compress_gradients=True', option):
            assert done.returncode == 2
        assert not (tmp_path / 'out').exists()


def test_where_adamw_is_not_fused_a_harmful_update_is_skipped_too(hooked, tmp_path):
    """As on Apple's GPU; the second update meets a loss that is not finite."""
    done = ok(hooked(NOT_FUSED, '--modern=True', '--optimizer=muon'))
    assert done.stdout.count('update skipped') == 1 and learned(tmp_path / 'out')


@pytest.mark.slow
def test_compiled_code_trains_as_eager_code_does(train, tmp_path):
    small = ['--modern=True', '--n_layer=1', '--max_iters=4', '--eval_interval=4']
    done = ok(train('--out_dir=out', '--compile=True', *small))
    if 'compile: not possible' in done.stdout:
        pytest.skip('no compiler on this machine: ' + done.stdout)
    assert 'compile: done in' in done.stdout
    assert train('--out_dir=eager', *small).returncode == 0
    assert np.allclose(losses(tmp_path / 'out'), losses(tmp_path / 'eager'), atol=1e-3)


COMPILE = '''
import functools
from torch._dynamo.utils import counters
torch.compile = functools.partial(torch.compile, backend='aot_eager')
when_printed('compile: done', lambda: print('graphs:', counters['stats']['unique_graphs']))
'''


@pytest.mark.slow
@pytest.mark.parametrize('options, tolerance', [
    (['--optimizer=muon'], 1e-4), (['--gradient_checkpointing=True'], 1e-4),
    (['--dtype=bfloat16', '--gradient_checkpointing=True', '--modern=True'], 0.03)])
def test_split_by_fsdp_and_compiled_it_trains_as_one_does(hooked, hooked_ranks, tmp_path, options, tolerance):
    """The graphs are what torch.compile makes of it; what they compile to is left to PyTorch (aot_eager)."""
    done = hooked_ranks(COMPILE, '--out_dir=two', '--fsdp=True', '--compile=True', '--max_iters=8', *options)
    for one in done:
        assert one.returncode == 0, one.stderr
    assert int(re.search(r'^graphs: (\d+)$', done[0].stdout, re.MULTILINE)[1]) > 0
    ok(hooked('', '--out_dir=one', '--max_iters=8', *options))  # in eager
    assert np.allclose(losses(tmp_path / 'two'), losses(tmp_path / 'one'), atol=tolerance)
    (_, ours, _), (_, theirs, _) = (read_metrics(tmp_path / name) for name in ('two', 'one'))
    assert [e['val_loss'] for e in ours] == pytest.approx([e['val_loss'] for e in theirs], abs=tolerance)


@pytest.mark.parametrize('schedule, at_8_12_16', [
    ('cosine', [1e-3 + 9e-3 * (1 + 0.5**0.5) / 2, 5.5e-3, 1e-3 + 9e-3 * (1 - 0.5**0.5) / 2]),
    ('linear', [1e-3 + 9e-3 * 0.75, 5.5e-3, 1e-3 + 9e-3 * 0.25]), ('wsd', [1e-2, 1e-2, 5.5e-3])])
def test_the_learning_rate_warms_up_and_follows_its_schedule(train, tmp_path, schedule, at_8_12_16):
    assert train('--out_dir=out', '--max_iters=25', '--warmup_iters=4', '--min_lr=1e-3', f'--schedule={schedule}',
                 '--cooldown=0.4').returncode == 0
    lr = [line['lr'] for line in read_metrics(tmp_path / 'out')[0]]
    assert lr[:5] == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 1e-2])
    assert [lr[8], lr[12], lr[16]] == pytest.approx(at_8_12_16)  # a quarter, a half and the rest from iteration 4 to 20
    assert lr[20:] == pytest.approx([1e-3] * 5)


@pytest.mark.parametrize('clipped', [0.01, 0.0])
def test_gradients_are_clipped_where_that_was_asked_for(train, tmp_path, clipped):
    """AdamW with eps near nothing hides the scale of its gradients, but its first moment shows it."""
    assert train('--out_dir=out', '--max_iters=1', f'--grad_clip={clipped}').returncode == 0
    logged = grad_norms(tmp_path / 'out')[0]
    state = torch.load(tmp_path / 'out' / 'last.pt', weights_only=True)['optimizer']['state']
    norm = torch.stack([moments['exp_avg'].norm() for moments in state.values()]).norm() / (1 - 0.9)
    assert norm.item() == pytest.approx(clipped or logged, rel=1e-3) and logged > 0.1


def test_a_state_is_saved_only_on_improvement_where_that_was_asked_for(train, tmp_path):
    # with a learning rate of zero nothing improves after the first evaluation
    still = ['--learning_rate=0.0', '--min_lr=0.0', '--eval_interval=5', '--max_iters=6']
    for folder, always in (('always', True), ('improved', False)):
        ok(train(f'--out_dir={folder}', f'--always_save_checkpoint={always}', *still))
        assert (tmp_path / folder / 'prev.pt').exists() == always
        assert checkpoint_file.load(str(tmp_path / folder / 'last.pt'))['iter_num'] == 6


def test_the_end_says_when_nothing_was_better_than_the_untrained_model(train, tmp_path):
    said = ok(train('--out_dir=out', '--learning_rate=9.0', '--max_iters=10')).stdout
    assert not (tmp_path / 'out' / 'ckpt.pt').exists()
    assert 'wrote last.pt, metrics.jsonl in out (last.pt has the newest weights: no evaluation was better' in said


def test_an_untrained_model_is_not_saved_and_is_never_the_best_one_to_sample_from(hooked, tmp_path):
    told = hooked("when_printed('iter 3:', lambda: os.kill(os.getpid(), signal.SIGTERM))", '--max_iters=5')
    assert told.returncode == 75 and sorted(os.listdir(tmp_path / 'out')) == [
        '.lock', 'last.pt', 'metrics.jsonl', 'settings.json']
    ok(hooked('', '--init_from=resume', '--max_iters=5'))
    assert checkpoint_file.load(str(tmp_path / 'out' / 'ckpt.pt'))['iter_num'] == 5


# evaluation

def test_zero_eval_iters_score_every_token_of_the_validation_split_once(train, trained, corpus_dir, tmp_path):
    args = [f'--init_from={trained}', '--out_dir=out', '--eval_only=True', '--eval_iters=0', '--batch_size=7']
    printed = train(*args).stdout
    model = GPT.from_checkpoint(trained).eval()
    ids = np.fromfile(os.path.join(corpus_dir, 'val.bin'), dtype='<u2').astype(np.int64)
    total = correct = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 16):
            window = torch.from_numpy(ids[start:start + 17])[None]
            logits, loss = model(window[:, :-1], window[:, 1:])
            total += loss.item() * (window.shape[1] - 1)
            correct += (logits.argmax(dim=-1) == window[:, 1:]).sum().item()
    assert f'val loss {total / (len(ids) - 1):.4f}' in printed
    assert f'accuracy {100 * correct / (len(ids) - 1):.1f}%' in printed


@pytest.fixture
def questions(tmp_path):
    """Files of questions that the toy model can read: mine.jsonl with two choices, words.jsonl, and one.jsonl."""
    words, rng = 'cat dog bird fish sees likes hears'.split(), np.random.default_rng(0)
    mine = [dict(query=f'the {rng.choice(words)}', choices=rng.choice(words, 2).tolist(), gold=i % 2)
            for i in range(31)]
    rows = {'mine': mine, 'words': [dict(text=f'a {word} e') for word in words], 'one': mine[:1]}
    for name, questions in rows.items():
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, questions)))


def test_tasks_are_scored_at_each_evaluation_as_evaluate_py_does_it(train, run, questions, tmp_path):
    args = ['--out_dir=out', '--max_iters=10', '--eval_interval=5', '--keep_interval=5']
    done = ok(train(*args, '--evaluate_tasks=mine.jsonl:0.5,words.jsonl'))
    evaluations = read_metrics(tmp_path / 'out')[1]
    assert len(evaluations) == 3 and done.stdout.count('\nmine: accuracy ') == done.stdout.count('\nwords: accu') == 3
    keys = 'acc', 'acc_stderr', 'acc_norm', 'acc_norm_stderr'
    for line in evaluations:
        assert [key for key in line if key.startswith('mine')] == [f'mine_{key}' for key in keys]
        assert {key for key in line if key.startswith('words')} == {'words_acc', 'words_acc_stderr', 'words_perplexity'}
    for line in evaluations[1:]:
        of_this = [f'--init_from=out/iter_{line["iter"]:06d}.pt', '--device=cpu', '--json=True']
        mine, words = (json.loads(ok(run('evaluate.py', *of_this, *more)).stdout)
                       for more in (['--tasks=mine.jsonl', '--fraction=0.5'], ['--tasks=words.jsonl']))
        assert mine['questions'] == 16 and all(line[f'mine_{key}'] == pytest.approx(mine[key]) for key in keys)
        assert line['words_perplexity'] == pytest.approx(words['perplexity'], rel=1e-4)
        assert line['words_acc'] == pytest.approx(words['acc'])
    assert evaluations[0]['words_perplexity'] > evaluations[2]['words_perplexity'] > 1.0


def test_scoring_tasks_changes_nothing(train, questions, tmp_path):
    for name, more in (('out', ['--evaluate_tasks=mine.jsonl,words.jsonl']), ('without', [])):
        ok(train(f'--out_dir={name}', '--dropout=0.1', '--max_iters=10', '--eval_interval=2', *more))
    assert losses(tmp_path / 'out') == losses(tmp_path / 'without')
    assert same(weights(tmp_path / 'out' / 'last.pt'), weights(tmp_path / 'without' / 'last.pt'))


def test_two_processes_find_the_figures_of_one(train, questions, corpus_dir, tmp_path):
    """Also where a process has no question, and with the model split over both."""
    tasks = ['--max_iters=1', '--eval_iters=1', '--evaluate_tasks=mine.jsonl,words.jsonl,one.jsonl']
    ok(train('--out_dir=one', *tasks))
    for name, more in (('ddp', []), ('fsdp', ['--fsdp=True'])):
        both = ranks(2, TRAIN, *TOY, f'--dataset={corpus_dir}', f'--out_dir={name}', *tasks, *more, cwd=tmp_path)
        assert ok(both[0]).stdout.count('mine: accuracy ') == 2 and 'accuracy' not in ok(both[1]).stdout
    expected, *found = (read_metrics(tmp_path / name)[1] for name in ('one', 'ddp', 'fsdp'))
    keys = [key for key in expected[0] if key.startswith(('mine_', 'words_', 'one_'))]
    assert len(keys) == 11
    for lines in found:
        assert all(lines[0][key] == pytest.approx(expected[0][key], rel=1e-5) for key in keys if 'one_' not in key)
        assert all(lines[0][key] == expected[0][key] for key in keys if 'one_' in key), 'errors of one answer are null'
        assert lines[1]['words_perplexity'] == pytest.approx(expected[1]['words_perplexity'], rel=1e-3)


def test_eval_only_writes_nothing_and_trains_nothing(train, trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'out')
    before = {name: (tmp_path / 'out' / name).read_bytes() for name in os.listdir(tmp_path / 'out')}
    done = train('--out_dir=out', '--init_from=resume', '--eval_only=True')
    assert done.returncode == 0 and 'step 20: train loss' in done.stdout and 'iter 20' not in done.stdout
    assert before == {name: (tmp_path / 'out' / name).read_bytes() for name in os.listdir(tmp_path / 'out')}
    assert train('--out_dir=none', '--eval_only=True').returncode == 0
    assert not (tmp_path / 'none').exists()


EVALUATES = '''
def refuse(*args, **options):
    raise AssertionError('this is for training')
for place, name in ((torch.Tensor, 'backward'), (model.GPT, 'configure_optimizers'),
                    (torch.nn.parallel.DistributedDataParallel, '__init__')):
    setattr(place, name, refuse)
'''


def test_eval_only_makes_nothing_that_training_needs(hooked, hooked_ranks, trained):
    args = ['--eval_only=True', f'--init_from={trained}']
    one = ok(hooked(COMPILE + EVALUATES, '--compile=True', *args)).stdout.splitlines()[-1]
    first, other = hooked_ranks(EVALUATES, *args)
    assert ok(first).stdout.splitlines()[-1] == one and one.startswith('step 0: train loss') and ok(other).stdout == ''


# where a run starts from

def test_another_runs_weights_start_a_new_run(train, trained, tmp_path):
    ok(train('--out_dir=out', f'--init_from={trained}', '--block_size=8', '--max_iters=0'))
    ours, theirs = weights(tmp_path / 'out' / 'ckpt.pt'), weights(trained + '/ckpt.pt')
    assert torch.equal(ours['transformer.h.0.attn.c_attn.weight'], theirs['transformer.h.0.attn.c_attn.weight'])
    assert ours['transformer.wpe.weight'].shape == (8, 32)
    assert checkpoint_file.load(str(tmp_path / 'out' / 'last.pt'))['config']['block_size'] == 8


def test_a_run_of_the_original_resumes_with_its_optimizer(train, trained, tmp_path):
    state = checkpoint_file.load(trained + '/last.pt')
    (tmp_path / 'out').mkdir()
    model_args = {key: value for key, value in state['model_args'].items() if key != 'activation'}
    torch.save(dict(model={f'_orig_mod.{key}': value for key, value in state['model'].items()},
                    optimizer=state['optimizer'], model_args=model_args, iter_num=10,
                    best_val_loss=torch.tensor(0.0), config={'dataset': 'x'}), tmp_path / 'out' / 'ckpt.pt')
    best = (tmp_path / 'out' / 'ckpt.pt').read_bytes()
    done = train('--out_dir=out', '--init_from=resume')
    assert done.returncode == 0 and 'resuming out/ckpt.pt at iteration 10' in done.stdout, done.stderr
    assert 'does not say what its ids mean' in done.stdout and 'which it did not have' not in done.stdout
    assert {int(moments['step']) for moments in torch.load(
        tmp_path / 'out' / 'last.pt', weights_only=True)['optimizer']['state'].values()} == {30}
    assert (tmp_path / 'out' / 'ckpt.pt').read_bytes() == best  # nothing came that is better


def test_gpt2_weights_are_finetuned_from_a_folder(train, tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.GPT2Config(n_positions=32, vocab_size=50257, n_layer=1, n_head=2, n_embd=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / 'gpt2-tiny')
    data = tmp_path / 'data'
    data.mkdir()
    for split in ('train', 'val'):  # as the original's prepare.py wrote them: bins alone
        np.random.default_rng(0).integers(50257, size=500).astype('<u2').tofile(data / f'{split}.bin')
    ok(train('--init_from=gpt2-tiny', f'--dataset={data}', '--out_dir=out', '--max_iters=2'))
    model_args = checkpoint_file.load(str(tmp_path / 'out' / 'ckpt.pt'))['model_args']
    assert (model_args['n_layer'], model_args['activation'], model_args['block_size']) == (1, 'gelu_tanh', 16)


def test_a_run_from_pretrained_weights_resumes_with_the_settings_it_began_with(train, tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.GPT2Config(n_positions=32, vocab_size=50257, n_layer=1, n_head=2, n_embd=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / 'gpt2-tiny')
    (tmp_path / 'data').mkdir()
    for split in ('train', 'val'):
        np.random.default_rng(0).integers(50257, size=500).astype('<u2').tofile(tmp_path / 'data' / f'{split}.bin')
    args = ['--dataset=data', '--out_dir=out', '--max_iters=2']
    assert train('--init_from=gpt2-tiny', *args).returncode == 0
    done = train('--init_from=resume', *args, '--max_iters=3')
    assert done.returncode == 0 and 'resuming out/last.pt at iteration 2' in done.stdout, done.stderr


# what is imported, prepared and logged elsewhere

def test_nothing_is_imported_that_was_not_asked_for(corpus_dir, tmp_path):
    code = ('import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__"); '
            'print([m for m in ("wandb", "datasets", "tiktoken", "transformers", "matplotlib") if m in sys.modules])')
    done = python('-c', code, os.path.join(ROOT, 'train.py'), *TOY, f'--dataset={corpus_dir}', '--max_iters=1',
                  cwd=tmp_path)
    assert done.stdout.endswith('[]\n'), done.stdout + done.stderr


def test_a_dataset_prepares_itself_where_the_config_says_so(train, corpus_dir, tmp_path):
    folder = tmp_path / 'mine'
    folder.mkdir()
    (folder / 'prepare.py').write_text(f'import shutil, os\nfor name in os.listdir({corpus_dir!r}):\n'
                                       f'    shutil.copy(os.path.join({corpus_dir!r}, name), {str(folder)!r})\n')
    refused = train(f'--dataset={folder}')
    assert refused.returncode == 2 and 'run: python mine/prepare.py' in refused.stderr
    assert train(f'--dataset={folder}', '--auto_prepare=True', '--max_iters=1').returncode == 0


def test_the_quick_start_prepares_trains_and_speaks(tmp_path):
    ignore = shutil.ignore_patterns('.git', '.venv', 'venv', '*.bin', 'meta.json', 'out*', 'results', '__pycache__')
    shutil.copytree(ROOT, tmp_path / 'copy', ignore=ignore)
    done = ok(python('train.py', 'config/quickstart.py', '--max_iters=2', '--eval_iters=1', cwd=tmp_path / 'copy'))
    for part in ('running data/pydoc_char/prepare.py', 'tokens to train on', 'iter 0: loss', 'in its own words',
                 'The ', 'python sample.py --out_dir=out-quickstart'):
        assert part in done.stdout


def test_the_originals_line_for_a_laptop_runs_as_it_stands(run, corpus_dir, tmp_path):
    line = ('config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 '
            '--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 '
            '--lr_decay_iters=2000 --dropout=0.0')
    ok(run('train.py', *line.split(), f'--dataset={corpus_dir}', '--max_iters=2'))
    assert checkpoint_file.load(str(tmp_path / 'out-shakespeare-char' / 'last.pt'))['model_args']['n_embd'] == 128


@pytest.mark.slow
def test_the_real_wandb_runs_offline(train, tmp_path):
    pytest.importorskip('wandb')
    done = ok(train('--out_dir=out', '--wandb_log=True', '--max_iters=1', WANDB_MODE='online', WANDB_SILENT='true',
                    HOME=str(tmp_path), WANDB_API_KEY=''))
    assert 'wandb: logging offline (no account on this machine' in done.stdout
    assert any(name.startswith('offline-run') for name in os.listdir(tmp_path / 'wandb'))


FAKE_WANDB = '''
import json, os
class errors:
    class Error(Exception): pass
def login(prompt): return {key}
def init(mode=os.environ['WANDB_MODE'], **settings):
    if mode == 'online': raise errors.Error('no route to host')
    open('wandb.log', 'a').write(json.dumps([mode, settings['project']]) + '\\n')
    open('wandb.ids', 'a').write(settings['id'] + ' ' + settings['resume'] + '\\n')
    import sys; return sys.modules[__name__]
def log(values, step): open('wandb.log', 'a').write(json.dumps([step, values]) + '\\n')
def finish(): open('wandb.log', 'a').write('"finished"\\n')
'''


@pytest.mark.parametrize('key, reason', [(False, 'no account'), (True, 'no route to host')])
def test_wandb_without_account_or_network_goes_on_offline(train, tmp_path, key, reason):
    (tmp_path / 'fake').mkdir()
    (tmp_path / 'fake' / 'wandb.py').write_text(FAKE_WANDB.format(key=key))
    done = ok(train('--out_dir=out', '--wandb_log=True', '--wandb_project=p', '--max_iters=2',
                    PYTHONPATH=str(tmp_path / 'fake'), WANDB_MODE='online'))
    assert [line for line in done.stdout.splitlines() if 'wandb' in line] == [
        line for line in done.stdout.splitlines() if reason in line and 'offline' in line] != []
    lines = [json.loads(line) for line in (tmp_path / 'wandb.log').read_text().splitlines()]
    assert lines[0] == ['offline', 'p'] and lines[-1] == 'finished' and len(lines) == 2 + 4 + 1


def test_a_resumed_run_goes_on_with_its_wandb_run_and_counts_its_tokens(train, tmp_path):
    (tmp_path / 'fake').mkdir()
    (tmp_path / 'fake' / 'wandb.py').write_text(FAKE_WANDB.format(key=True))
    env = dict(PYTHONPATH=str(tmp_path / 'fake'), WANDB_MODE='offline')
    for args in (['--max_iters=5'], ['--max_iters=7', '--init_from=resume', '--gradient_accumulation_steps=8'],
                 ['--max_iters=1']):
        ok(train('--out_dir=out', '--wandb_log=True', *args, **env))
    first, resumed, new = (tmp_path / 'wandb.ids').read_text().splitlines()
    assert first == resumed != new and first.endswith(' allow')
    tokens = [line['tokens'] for line in read_metrics(tmp_path / 'out' / 'previous-1')[0]]
    assert tokens == [*range(128, 641, 128), 640 + 512, 640 + 1024], 'with four times the batch from iteration 5 on'


# bad input: one line, exit code 2, nothing written

@pytest.mark.parametrize('args, expected', [
    (['--batch_sise=3'], ['unknown setting --batch_sise', 'batch_size']),
    (['--max_iters=many'], ['max_iters expects int']),
    (['config/nothing.py'], ["no config file 'config/nothing.py'"]),
    (['--dataset=nothing'], ["'nothing' has no train.bin and no val.bin", 'shakespeare_char']),
    (['--dataset={root}/data/shakespeare_char'], ['run: python', 'shakespeare_char/prepare.py']),
    (['--block_size=9000'], ['train.bin has 5', 'block_size=9000 needs 9001']),
    (['--n_embd=33'], ['n_embd=33 is not divisible by n_head=2', '--n_head=1']),
    (['--n_embd=33', '--modern=True'], ['try --n_embd=36']),
    (['--n_embd=34', '--modern=True'], ['heads of 17 channels', 'try --n_head=1 or --n_embd=36']),
    (['--init_from=resume'], ['nothing to resume']),
    (['--init_from=nowhere'], ['nowhere is no file or folder here', 'Hugging Face']),
    (['--init_from=gpt2-mediun'], ['did you mean gpt2-medium?']),
    (['--init_from=out/none.pt'], ['no checkpoint out/none.pt']),
    (['--warmup_iters=20'], ['warmup_iters=20', 'lr_decay_iters=20', '--warmup_iters=1']),
    (['--device=cuda'], ["device='cuda'", '--device=auto']),
    (['--dtype=float16'], ['float16', '--dtype=float32']),
    (['--learning_rate=-1.0'], ['learning_rate=-1.0 is below 0']),
    (['--sample_prompts=FILE:none.txt'], ['none.txt']),
    (['--sample_prompts=#'], ["'#'"]),
    (['--evaluate_tasks=helaswag'], ["there is no task 'helaswag'; it is one of hellaswag, "]),
    (['--evaluate_tasks=none.jsonl:0.5'], ['none.jsonl cannot be read as questions']),
    (['--evaluate_tasks=piqa:2'], ["evaluate_tasks='piqa:2': '2' is no fraction above 0 and at most 1"]),
])
def test_a_mistake_is_one_line_and_nothing_is_written(train, tmp_path, args, expected):
    if 'shakespeare_char' in args[0] and os.path.exists(os.path.join(ROOT, 'data/shakespeare_char/train.bin')):
        pytest.skip('this dataset has been prepared')
    done = train('--out_dir=out', *[arg.format(root=ROOT) for arg in args])
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith('train.py: ')
    for part in expected:
        assert part in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('key, value, processes, expected', [
    ('batch_size', 0, 1, 'batch_size=0 is below 1'), ('n_head', 0, 1, 'n_head=0 is below 1'),
    ('beta2', 1.0, 1, 'beta2=1.0 is not below 1'), ('keep_interval', 7, 1, '--keep_interval=10'),
    ('optimizer', 'adam', 1, 'adamw, muon'), ('schedule', 'step', 1, 'cosine, linear, wsd'),
    ('cooldown', 1.5, 1, 'fraction'), ('learning_rate', 0.0, 1, '--learning_rate=0.02'),
    ('muon_lr', 0.0, 1, '--muon_lr=0.02'), ('activation', 'gelu_tanh', 1, 'ReLU'),
    ('cooldown', 0.95, 1, '--cooldown=0.9'), ('min_lr', 2e-3, 1, 'try --min_lr=0.0001'),
    ('warmup_iters', 20, 1, '--warmup_iters=1'), ('fsdp', True, 1, 'torchrun'),
    ('compress_gradients', True, 1, 'there is one process.*--compress_gradients=False'),
    ('gradient_accumulation_steps', 5, 3, 'try --gradient_accumulation_steps=3 or --gradient_accumulation_steps=6'),
    ('gradient_accumulation_steps', 1, 2, 'try --gradient_accumulation_steps=2'), ('batch_size', 3, 1, None)])
def test_settings_that_cannot_work_are_refused(key, value, processes, expected):
    these = dict(optimizer='muon', schedule='wsd', cooldown=0.3, learning_rate=1e-3, muon_lr=1e-2, modern=True,
                 activation='gelu', wandb_log=False, tensorboard_log=False,
                 n_layer=1, n_head=1, n_embd=2, batch_size=1, block_size=1, gradient_accumulation_steps=6,
                 eval_interval=10, log_interval=1, max_skips=1, dropout=0.0, beta1=0.9, beta2=0.9, decay_lr=True,
                 warmup_iters=2, lr_decay_iters=20, min_lr=1e-4, keep_interval=20, fsdp=False, eval_only=False,
                 out_dir='out')
    if expected is None:
        return settings.check({**these, key: value}, processes)
    with pytest.raises(ValueError, match=expected):
        settings.check({**these, key: value}, processes)


@pytest.mark.parametrize('args, expected', [
    (['--n_layer=3'], ['another model', '--n_layer=2']),
    (['--block_size=8'], ['another model', '--block_size=16']),
    (['--bias=True'], ['another model', '--bias=False']),
    (['--init_from=out', '--modern=True'], ['weights of out', 'use --modern=False']),
    (['--modern=True'], ['another model', '--modern=False']),
    (['--optimizer=muon'], ['another optimizer', '--optimizer=adamw']),
])
def test_resuming_with_another_shape_is_refused_and_harms_nothing(train, trained, tmp_path, args, expected):
    shutil.copytree(trained, tmp_path / 'out')
    before = (tmp_path / 'out' / 'last.pt').read_bytes()
    done = train('--out_dir=out', '--init_from=resume', *args)
    assert done.returncode == 2
    for part in expected:
        assert part in done.stderr
    assert (tmp_path / 'out' / 'last.pt').read_bytes() == before


@pytest.fixture(scope='module')
def instructions(tmp_path_factory):
    """The folder of a dataset that asks to translate one of four words after a filler, and what the answers are."""
    folder, random = tmp_path_factory.mktemp('instructions'), np.random.default_rng(0)
    words = {'red': 'rot', 'blue': 'blau', 'green': 'gruen', 'white': 'weiss'}
    with open(folder / 'mine.jsonl', 'w', encoding='utf-8') as f:
        for word in random.choice(list(words), 600):
            filler = ''.join(random.choice(list('abcdefgh'), 4))
            f.write(json.dumps({'instruction': f'{filler} {word}', 'output': words[word]}) + '\n')
    script = os.path.join(ROOT, 'data', 'alpaca', 'prepare.py')
    ok(python(script, '--input=mine.jsonl', '--tokenizer=char', '--out=.', cwd=folder))
    return str(folder)


ON_INSTRUCTIONS = ['--block_size=64', '--batch_size=8', '--gradient_accumulation_steps=1', '--eval_interval=100']


def test_a_model_learns_the_answers_and_not_the_questions(run, instructions, tmp_path):
    def losses(name, *args):
        """The losses of the tokens of val that count and of those that do not, after training."""
        ok(run('train.py', *TOY, *ON_INSTRUCTIONS, f'--dataset={name}', f'--out_dir=out-{os.path.basename(name)}',
               '--max_iters=200', '--lr_decay_iters=200', '--optimizer=muon', '--modern=True'))
        model = GPT.from_checkpoint(torch.load(tmp_path / f'out-{os.path.basename(name)}' / 'ckpt.pt')).eval()
        ids = torch.from_numpy(np.fromfile(os.path.join(instructions, 'val.bin'), np.uint16)[:65 * 15].astype(np.int64))
        mask = torch.from_numpy(np.fromfile(os.path.join(instructions, 'val_mask.bin'), np.bool_)[:65 * 15])
        ids, mask = ids.view(-1, 65), mask.view(-1, 65)[:, 1:].clone()
        mask[:, :40] = False  # too near the beginning to have seen the question
        x, y = ids[:, :-1], ids[:, 1:]
        asked = ~mask
        asked[:, :40] = False
        with torch.no_grad():
            return [model(x, torch.where(chosen, y, -1))[1].item() for chosen in (mask, asked)]

    answers, questions = losses(instructions)
    assert answers < 0.3 and questions > 2.0
    shutil.copytree(instructions, tmp_path / 'unmasked', ignore=shutil.ignore_patterns('*_mask.bin'))
    meta = json.loads((tmp_path / 'unmasked' / 'meta.json').read_text())
    meta['sha256'] = {name: value for name, value in meta['sha256'].items() if 'mask' not in name}
    (tmp_path / 'unmasked' / 'meta.json').write_text(json.dumps(meta))
    assert losses(str(tmp_path / 'unmasked'))[1] < 1.2, 'without the masks it learns the questions, too'


def test_every_answer_counts_the_same_however_the_batch_is_split(instructions, tmp_path):
    """Micro-batches and processes have different numbers of targets that count; the loss is the mean over all."""
    results = []
    for folder, split, count in (('one', (8, 1), 1), ('four', (2, 4), 1), ('two', (4, 2), 2)):
        for done in ranks(count, TRAIN, *TOY, *ON_INSTRUCTIONS, f'--dataset={instructions}', f'--out_dir={folder}',
                          f'--batch_size={split[0]}', f'--gradient_accumulation_steps={split[1]}', '--block_size=16',
                          cwd=tmp_path):
            assert done.returncode == 0, done.stderr
        results.append(read_metrics(tmp_path / folder)[0])
    for other in results[1:]:
        for key in ('loss', 'grad_norm'):
            assert np.allclose([s[key] for s in results[0]], [s[key] for s in other], rtol=1e-3)


def test_a_dataset_whose_mask_is_missing_or_short_is_refused(train, instructions, tmp_path):
    shutil.copytree(instructions, tmp_path / 'spoilt')
    (tmp_path / 'spoilt' / 'train_mask.bin').write_bytes(b'\1' * 100)
    assert 'has 100 entries for' in train(f'--dataset={tmp_path / "spoilt"}').stderr
    (tmp_path / 'spoilt' / 'train_mask.bin').unlink()
    done = train(f'--dataset={tmp_path / "spoilt"}')
    assert done.returncode == 2 and 'there is no ' in done.stderr and 'train_mask.bin' in done.stderr


def test_an_evaluation_of_nothing_that_counts_says_so(train, instructions, tmp_path):
    shutil.copytree(instructions, tmp_path / 'late')
    meta = json.loads((tmp_path / 'late' / 'meta.json').read_text())
    for split in ('train', 'val'):
        mask = np.fromfile(tmp_path / 'late' / f'{split}_mask.bin', np.uint8)
        mask[:50] = 0
        mask.tofile(tmp_path / 'late' / f'{split}_mask.bin')
    done = train(f'--dataset={tmp_path / "late"}', '--eval_iters=1', '--batch_size=1')
    assert done.returncode == 2 and 'excludes all evaluated tokens' in done.stderr and 'Traceback' not in done.stderr


@pytest.fixture
def other_corpus(tmp_path):
    """A dataset folder that a test may spoil: other_corpus(text, changes to its meta.json)."""
    def make(text='abc\n' * 500, **changes):
        folder = tmp_path / 'other'
        folder.mkdir()
        make_dataset(folder, text)
        meta = json.loads((folder / 'meta.json').read_text())
        (folder / 'meta.json').write_text(json.dumps({**meta, **changes}))
        return str(folder)
    return make


def test_another_vocabulary_is_refused(train, trained, other_corpus):
    folder = other_corpus()
    for init_from in (trained, os.path.join(trained, 'last.pt')):
        done = train(f'--dataset={folder}', f'--init_from={init_from}', '--out_dir=new')
        assert done.returncode == 2 and 'vocabularies differ' in done.stderr
    done = train(f'--dataset={folder}', '--init_from=resume', f'--out_dir={trained}')
    assert done.returncode == 2 and 'vocabularies differ' in done.stderr


def test_an_id_beyond_the_vocabulary_is_refused(train, other_corpus):
    done = train('--dataset=' + other_corpus(vocab_size=3, chars='abc'))
    assert done.returncode == 2 and 'token id 3' in done.stderr and 'vocab_size=3' in done.stderr


@pytest.mark.parametrize('meta', ['{"tokenizer": ', '{"vocab_size": 3}', '[]'])
def test_a_damaged_meta_is_named(train, other_corpus, meta):
    folder = other_corpus()
    with open(os.path.join(folder, 'meta.json'), 'w') as f:
        f.write(meta)
    done = train(f'--dataset={folder}')
    assert done.returncode == 2 and 'meta.json is damaged' in done.stderr


def test_bins_that_are_not_those_of_their_meta_are_refused(train, other_corpus):
    done = train(f'--dataset={other_corpus(train_tokens=3)}')
    assert done.returncode == 2 and 'its meta.json says 3' in done.stderr


@pytest.mark.parametrize('out_dir', ['', 'a_file'])
def test_an_impossible_out_dir_is_refused(train, tmp_path, out_dir):
    (tmp_path / 'a_file').write_text('mine')
    done = train(f'--out_dir={out_dir}')
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / 'a_file').read_text() == 'mine'


def test_processes_that_find_different_states_are_refused(hooked_ranks, trained):
    """As on two nodes of which only the first has the out_dir."""
    places = f"""
from common import console
console.OTHERS_FAIL = 0.0
sys.argv.append('--out_dir=' + [{trained!r}, 'nothing'][int(os.environ['RANK'])])"""
    done = hooked_ranks(places, '--init_from=auto', '--max_iters=30')
    assert done[0].returncode == 2 and 'the processes found different states' in done[0].stderr
    assert done[1].returncode != 0


def test_processes_that_would_train_in_different_dtypes_are_refused(hooked_ranks, tmp_path):
    """As with a V100 and an A100 in one machine: one of them scales its gradients, the other does not."""
    mixed = """
from common import console, device
console.OTHERS_FAIL = 0.0
device.resolve_dtype = lambda *args, **options: 'bfloat16' if os.environ['RANK'] == '1' else 'float16'"""
    for done in hooked_ranks(mixed):
        assert done.returncode != 0 and 'Traceback' not in done.stderr
        assert 'GPUs of different kinds (dtype=' in done.stderr and '--dtype=float16' in done.stderr
    assert not (tmp_path / 'out').exists()


def test_a_mistake_that_one_process_alone_sees_is_told_by_it(hooked_ranks):
    alone = """
from common import console, dataset
console.OTHERS_FAIL = 0.0
def find(root, name, original=dataset.find):
    if os.environ['RANK'] == '1': raise ValueError('no such dataset here')
    return original(root, name)
dataset.find = find"""
    first, other = hooked_ranks(alone)
    assert (other.returncode, other.stderr) == (2, 'train.py (rank 1): no such dataset here\n')
    assert first.returncode == 2 and first.stderr.endswith(
        'train.py: another process of this run has ended, see its message\n') and 'Traceback' not in first.stderr


@pytest.mark.parametrize('variables, said', [
    (dict(RANK='1'), 'RANK=1, no WORLD_SIZE'), (dict(LOCAL_RANK='1'), 'LOCAL_RANK=1'),
    (dict(WORLD_SIZE='two'), "WORLD_SIZE='two'")])
def test_a_senseless_environment_is_no_silent_run(train, tmp_path, variables, said):
    done = train('--out_dir=out', **variables)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr and 'unset' in done.stderr
    assert not (tmp_path / 'out').exists()


def test_a_pickled_meta_is_not_loaded(train, other_corpus):
    folder = other_corpus()
    os.rename(os.path.join(folder, 'meta.json'), os.path.join(folder, 'meta.pkl'))
    done = train(f'--dataset={folder}')
    assert done.returncode == 2 and 'meta.pkl' in done.stderr
    assert 'made anew of the same text it has the same ids' in done.stderr and '--tokenizer=char' in done.stderr


A_PICKLE_THAT_RUNS_A_COMMAND = b'\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch explodedq\x00\x85R.'


@pytest.mark.parametrize('content', [b'', b'random bytes', A_PICKLE_THAT_RUNS_A_COMMAND])
def test_a_damaged_checkpoint_is_refused_and_left_alone(train, tmp_path, content):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'last.pt').write_bytes(content)
    for init_from in ('resume', 'out') if content else ('auto',):
        done = train('--out_dir=out', f'--init_from={init_from}')
        assert done.returncode == 2 and 'last.pt is damaged or not a checkpoint' in done.stderr, done.stderr
    assert (tmp_path / 'out' / 'last.pt').read_bytes() == content and not (tmp_path / 'exploded').exists()
