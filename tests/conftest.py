"""What the tests share: a corpus that they make, and the scripts run as a user runs them, at toy size and offline."""
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'data')]

# Toy sizes are faster on one thread of the CPU, and nothing may wait for a network. Set before torch is imported.
os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
# What torch.compile has cached elsewhere may be for another CPU: PyTorch does not notice one that is only played (.ci/run).
COMPILED = tempfile.TemporaryDirectory(prefix='compiled-')
os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', COMPILED.name)

# 2 layers, 32 wide, 16 tokens of context: an iteration takes milliseconds
TOY = ['--device=cpu', '--dtype=float32', '--compile=False', '--n_layer=2', '--n_head=2', '--n_embd=32',
       '--block_size=16', '--batch_size=4', '--gradient_accumulation_steps=2', '--max_iters=20', '--lr_decay_iters=20',
       '--warmup_iters=2', '--learning_rate=1e-2', '--eval_interval=10', '--eval_iters=5']


TRAIN, HOOKED = os.path.join(ROOT, 'train.py'), os.path.join(ROOT, 'tests', 'hooked.py')
# code for HOOKED: bench.py's measure of the machine is one product instead of a second of them
QUICK = 'from common import roofline\nroofline.shortest = roofline.seconds\n'
HANG = 900  # seconds: no test waits nearly as long on any machine; a limit of this size only ends what hangs
# what a script reads of its environment after torch has been imported, or Python started: a fork may change it
READ_LATE = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'HOME', 'PYTHONPATH',
             'WANDB_MODE', 'WANDB_SILENT', 'WANDB_API_KEY')
COLD = ('run_manager.py',)  # needs no torch


def pytest_collection_modifyitems(items):
    """What takes long and seldom breaks is marked `dear`, and not a part of the short command (CONTRIBUTING.md)."""
    if os.environ.get('NANOGPT_TESTS') != 'all':
        for item in items:
            if item.get_closest_marker('dear'):
                item.add_marker(pytest.mark.skip(reason='dear: with NANOGPT_TESTS=all'))


def python(*args, cwd, stdin='', **env):
    """Run `python args` in a folder; returns the CompletedProcess, with stdout and stderr as text."""
    return together([args], cwd, [env], stdin)[0]


def ranks(count, *args, cwd):
    """Run `python args` as `torchrun --nproc_per_node=count` would; returns the CompletedProcess of each rank."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    envs = [dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
                 MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)) for rank in range(count)]
    return together([args] * count, cwd, envs)


def together(commands, cwd, envs, stdin=''):
    """
    Run commands at once, each with its own additions to the environment; returns their CompletedProcesses. Scripts are
    forked from a process that has imported torch, where that can be.
    """
    commands = [[str(arg) for arg in args] for args in commands]
    late = all(env.keys() <= set(READ_LATE) for env in envs) and environment() == ENVIRONMENT
    is_script = all(args[0].endswith('.py') and os.path.basename(args[0]) not in COLD for args in commands)
    if late and is_script and sys.platform == 'linux':
        server = warm_python()
        requests = [[args, str(cwd), {**ENVIRONMENT, **env}, stdin, HANG] for args, env in zip(commands, envs)]
        print(json.dumps(requests), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, 'tests/warm_python.py has died; what it said stands in stderr'
        done = [subprocess.CompletedProcess(args, *one) for args, one in zip(commands, json.loads(answer))]
    else:
        processes = [subprocess.Popen([sys.executable, *args], cwd=cwd, env={**environment(), **env}, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                     for args, env in zip(commands, envs)]
        said = [process.communicate(stdin, timeout=HANG) for process in processes]
        done = [subprocess.CompletedProcess(args, process.returncode, *one)
                for args, process, one in zip(commands, processes, said)]
    for one in done:
        if one.returncode == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(one.args, HANG, one.stdout, one.stderr)
    return done


AT_FIRST = set(os.environ)


def environment():
    """os.environ without what pytest and, once it has compiled something, torch.compile note there."""
    return {key: value for key, value in os.environ.items() if not key.startswith('PYTEST_')
            and ('TORCHINDUCTOR' not in key or key in AT_FIRST)}


ENVIRONMENT = environment()


@functools.cache
def warm_python():
    """The process of tests/warm_python.py; it ends when its stdin does, with this process."""
    return subprocess.Popen([sys.executable, os.path.join(ROOT, 'tests', 'warm_python.py')], text=True,
                            env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture(autouse=True)
def own_environment():
    """What a test leaves in os.environ is not there for the next one, or no script could be forked any more."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


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


@pytest.fixture
def hooked(tmp_path, corpus_dir):
    """
    hooked(code, '--max_iters=5', ...): a toy run of train.py into tmp_path/out with a piece of code ahead of it, of
    which tests/hooked.py tells. With processes=2 it has so many ranks, and each one's CompletedProcess is returned.
    """
    def run(code, *args, settings=TOY, processes=1):
        words = [HOOKED, code, TRAIN, *settings, f'--dataset={corpus_dir}', '--out_dir=out', *args]
        return ranks(processes, *words, cwd=tmp_path) if processes > 1 else python(*words, cwd=tmp_path)
    return run


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
DEMANDING = [*TOY, '--modern=True', '--optimizer=muon', '--dropout=0.1', '--eval_interval=5',
             '--sample_prompts=the cat']


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
