"""What the tests share: a corpus that they make, and the scripts run as a user runs them, at toy size and offline."""
import functools
import json
import os
import signal
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'data')]

# Toy sizes are faster on one thread of the CPU, and nothing may wait for a network. Set before torch is imported.
os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')

# 2 layers, 32 wide, 16 tokens of context: an iteration takes milliseconds
TOY = ['--device=cpu', '--dtype=float32', '--compile=False', '--n_layer=2', '--n_head=2', '--n_embd=32',
       '--block_size=16', '--batch_size=4', '--gradient_accumulation_steps=2', '--max_iters=20', '--lr_decay_iters=20',
       '--warmup_iters=2', '--learning_rate=1e-2', '--eval_interval=10', '--eval_iters=5']


TIMEOUT = 240  # seconds
NEED_TORCH = ('train.py', 'sample.py', 'bench.py', 'export.py', 'broken.py')  # the last is of tests/test_faults.py


def python(*args, cwd, **env):
    """
    Run `python args` in a folder; returns the CompletedProcess, with stdout and stderr as text. Scripts that need torch
    are forked from a process that has imported it, unless their environment is another than its own.
    """
    args, env = [*map(str, args)], {**environment(), **env}
    if env != ENVIRONMENT or os.path.basename(args[0]) not in NEED_TORCH or sys.platform != 'linux':
        return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True,
                              timeout=TIMEOUT)
    server = warm_python()
    print(json.dumps([args, str(cwd), TIMEOUT]), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, 'tests/warm_python.py has died; what it said stands in stderr'
    done = subprocess.CompletedProcess(args, *json.loads(answer))
    if done.returncode == -signal.SIGALRM:
        raise subprocess.TimeoutExpired(args, TIMEOUT, done.stdout, done.stderr)
    return done


def environment():
    """os.environ without what pytest and, once it is imported, torch._dynamo note there."""
    return {key: value for key, value in os.environ.items()
            if not key.startswith('PYTEST_') and key != 'TORCHINDUCTOR_CACHE_DIR'}


ENVIRONMENT = environment()


@functools.cache
def warm_python():
    """The process of tests/warm_python.py; it ends when its stdin does, with this process."""
    return subprocess.Popen([sys.executable, os.path.join(ROOT, 'tests', 'warm_python.py')], text=True,
                            env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def make_dataset(folder, text, *args):
    """A dataset of one text in `folder`, one id a character unless `args` say otherwise; returns its path."""
    (folder / 'mine.txt').write_text(text, encoding='utf-8', newline='')
    script = os.path.join(ROOT, 'data', 'text', 'prepare.py')
    kind = [] if any(arg.startswith('--vocab_size') for arg in args) else ['--tokenizer=char']
    done = python(script, '--input=mine.txt', '--out=.', *kind, *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return str(folder)


@pytest.fixture
def run(tmp_path):
    """run('train.py', '--max_iters=1', ...): a script of the project, in a temporary folder."""
    return lambda script, *args, **env: python(os.path.join(ROOT, script), *args, cwd=tmp_path, **env)


@pytest.fixture(scope='session')
def corpus_dir(tmp_path_factory):
    """A character-level dataset of 6,000 characters with something to learn in it."""
    words = ['the cat', 'a dog', 'one bird', 'my fish', 'that horse']
    verbs = ['sees', 'likes', 'follows', 'hears']
    lines = [f'{words[i * i % 5]} {verbs[i % 4]} {words[(i * 3 + i // 7) % 5]}.' for i in range(270)]
    return make_dataset(tmp_path_factory.mktemp('toy'), '\n'.join(lines))


@pytest.fixture
def train(run, corpus_dir):
    """train('--max_iters=5', ...): a toy run of train.py on the test corpus."""
    return lambda *args, **env: run('train.py', *TOY, f'--dataset={corpus_dir}', *args, **env)


@pytest.fixture(scope='session')
def trained(tmp_path_factory, corpus_dir):
    """The out_dir of a finished toy run, which tests may read but not change."""
    folder = tmp_path_factory.mktemp('trained')
    done = python(os.path.join(ROOT, 'train.py'), *TOY, f'--dataset={corpus_dir}', '--out_dir=out', cwd=folder)
    assert done.returncode == 0, done.stderr
    return str(folder / 'out')


@pytest.fixture(scope='module', params=[False, True], ids=['classic', 'modern'])
def model(request):
    """A small random model, whose parameters that begin at 0 are not."""
    import torch
    from model import GPT, GPTConfig
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=2, n_head=2, n_embd=32, modern=request.param)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def read_metrics(out_dir):
    """(training lines, evaluation lines, the last line) of a run's metrics.jsonl."""
    with open(os.path.join(out_dir, 'metrics.jsonl'), encoding='utf-8') as f:
        lines = [json.loads(line) for line in f]
    return [line for line in lines if 'loss' in line], [line for line in lines if 'val_loss' in line], lines[-1]


# a run with all that a resume could get wrong: two optimizers in one, dropout, accumulation, samples, evaluations
DEMANDING = [*TOY, '--modern=True', '--optimizer=muon', '--dropout=0.1', '--max_iters=40', '--lr_decay_iters=40',
             '--eval_interval=5', '--sample_prompts=the cat']


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory, corpus_dir):
    """The out_dir of a DEMANDING run that nothing ever stopped."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    done = python(os.path.join(ROOT, 'train.py'), *DEMANDING, f'--dataset={corpus_dir}', '--out_dir=out', cwd=folder)
    assert done.returncode == 0, done.stderr
    return str(folder / 'out')


def assert_same_run(out_dir, reference):
    """Weights, optimizer, losses, evaluations and samples of two finished runs are the same, to the bit."""
    import torch
    ours, theirs = (torch.load(os.path.join(place, 'last.pt'), weights_only=True) for place in (out_dir, reference))
    assert all(torch.equal(ours['model'][key], theirs['model'][key]) for key in theirs['model'])
    for i, moments in theirs['optimizer']['state'].items():
        assert all(torch.equal(ours['optimizer']['state'][i][key], moments[key]) for key in moments)
    for key in ('iter_num', 'best_val_loss', 'evaluated_at', 'since_best', 'recent_losses', 'scaler'):
        assert ours[key] == theirs[key], key
    best = [torch.load(os.path.join(place, 'ckpt.pt'), weights_only=True) for place in (out_dir, reference)]
    assert best[0]['iter_num'] == best[1]['iter_num'] and best[0]['best_val_loss'] == best[1]['best_val_loss']
    assert all(torch.equal(best[0]['model'][key], best[1]['model'][key]) for key in best[1]['model'])
    measured = ('ms', 'tok_s', 'train_s', 'mem_gb')
    logs = []
    for place in (out_dir, reference):
        steps, evaluations, end = read_metrics(place)
        logs.append([{key: value for key, value in line.items() if key not in measured}
                     for line in [*steps, *evaluations, end]])
    assert logs[0] == logs[1]
    for name in os.listdir(os.path.join(reference, 'samples')):
        texts = [open(os.path.join(place, 'samples', name)).read() for place in (out_dir, reference)]
        assert texts[0] == texts[1]
