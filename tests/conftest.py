"""What the tests share: a corpus that they make, and the scripts run as a user runs them, at toy size and offline."""
import faulthandler
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from hooked import HANG

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'data')]

# Toy sizes are faster on one thread of the CPU, and nothing may wait for a network. Set before torch is imported.
os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
# A cache of torch.compile for this session alone: PyTorch takes what was compiled for another CPU, too, if that was
# this one as .ci/run emulates it.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix='compiled-')
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = COMPILED.name
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell script: children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# 2 layers, 32 wide, 16 tokens of context: an iteration takes milliseconds
TOY = ['--device=cpu', '--dtype=float32', '--compile=False', '--n_layer=2', '--n_head=2', '--n_embd=32',
       '--block_size=16', '--batch_size=4', '--gradient_accumulation_steps=2', '--max_iters=20', '--lr_decay_iters=20',
       '--warmup_iters=2', '--learning_rate=1e-2', '--eval_interval=10', '--eval_iters=5']


TRAIN, HOOKED = os.path.join(ROOT, 'train.py'), os.path.join(ROOT, 'tests', 'hooked.py')
# code for HOOKED: bench.py's measure of the machine is one product instead of a second of them
QUICK = 'from common import roofline\nroofline.shortest = roofline.seconds\n'
WITHOUT_TORCH = ('run_manager.py',)
# variables that a fork may be given, as nothing reads them before a script has begun
FORK_MAY_SET = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'HOME',
                'PYTHONPATH', 'TORCHELASTIC_USE_AGENT_STORE', 'WANDB_MODE', 'WANDB_SILENT', 'WANDB_API_KEY')


def pytest_collection_modifyitems(items):
    """What takes long and seldom breaks is marked `slow`, and not a part of the short command (CONTRIBUTING.md)."""
    if os.environ.get('NANOGPT_TESTS') != 'all':
        for item in items:
            if item.get_closest_marker('slow'):
                item.add_marker(pytest.mark.skip(reason='slow: with NANOGPT_TESTS=all'))
    items.sort(key=lambda item: item.path, reverse=True)  # test_train.py first: no worker is to end long after the other


def python(*args, cwd, stdin='', **env):
    """Run `python args` in a folder; returns the CompletedProcess, with stdout and stderr as text."""
    return run_all([args], cwd, [env], stdin)[0]


def hook(code, script, *args, cwd):
    """Run a script of the project with a piece of code ahead of it (tests/hooked.py); returns the CompletedProcess."""
    return python(HOOKED, code, os.path.join(ROOT, script), *args, cwd=cwd)


def ranks(count, *args, cwd):
    """Run `python args` as `torchrun --nproc_per_node=count` would; returns the CompletedProcess of each rank."""
    from torch.distributed import TCPStore
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)  # as torchrun's, on a port of its own
    shared = dict(WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR='127.0.0.1', MASTER_PORT=store.port,
                  TORCHELASTIC_USE_AGENT_STORE=True)
    envs = [{key: str(value) for key, value in dict(shared, RANK=rank, LOCAL_RANK=rank).items()}
            for rank in range(count)]
    return run_all([args] * count, cwd, envs)


def run_all(commands, cwd, envs, stdin=''):
    """
    Run commands at once, each with its own additions to the environment; returns their CompletedProcesses. Scripts are
    forked from a process that has imported torch, where that can be.
    """
    commands = [[str(arg) for arg in args] for args in commands]
    is_script = all(args[0].endswith('.py') and os.path.basename(args[0]) not in WITHOUT_TORCH for args in commands)
    can_fork = all(env.keys() <= set(FORK_MAY_SET) for env in envs) and environment() == ENVIRONMENT
    if is_script and can_fork and sys.platform == 'linux':
        server = warm_python()
        requests = [[args, str(cwd), {**ENVIRONMENT, **env}, stdin, HANG] for args, env in zip(commands, envs)]
        print(json.dumps(requests), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, 'tests/warm_python.py has died; what it said stands in stderr'
        done = [subprocess.CompletedProcess(args, *one) for args, one in zip(commands, json.loads(answer))]
    else:
        done = start_all(commands, cwd, envs, stdin)
    for one in done:
        if one.returncode == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(one.args, HANG, one.stdout, one.stderr)
    return done


def start_all(commands, cwd, envs, stdin):
    """run_all() in new processes."""
    files = [[tempfile.TemporaryFile('w+', encoding='utf-8') for _ in range(3)] for _ in commands]
    processes = []
    try:
        for args, env, (given, out, err) in zip(commands, envs, files):
            given.write(stdin)
            given.seek(0)
            processes.append(subprocess.Popen([sys.executable, *args], cwd=cwd, env={**environment(), **env},
                                              stdin=given, stdout=out, stderr=err))
        for process in processes:
            process.wait(timeout=HANG)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for file in sum(files, []):
        file.seek(0)
    return [subprocess.CompletedProcess(args, process.returncode, out.read(), err.read())
            for args, process, (_, out, err) in zip(commands, processes, files)]


def environment():
    """os.environ without what pytest and, once it has compiled something, torch.compile note there."""
    return {key: value for key, value in os.environ.items() if not key.startswith('PYTEST_')
            and ('TORCHINDUCTOR' not in key or key == 'TORCHINDUCTOR_CACHE_DIR')}


ENVIRONMENT = {}  # with which the tests begin


def pytest_collection_finish():
    ENVIRONMENT.update(environment())


@functools.cache
def warm_python():
    """The process of tests/warm_python.py; it ends when its stdin does, with this process."""
    return subprocess.Popen([sys.executable, os.path.join(ROOT, 'tests', 'warm_python.py')], text=True,
                            env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture(autouse=True)
def on_its_own():
    """
    What a test leaves in os.environ is not there for the next one, or no script could be forked any more. One that
    hangs, and whose processes do not end by themselves, ends this process and says where.
    """
    before = dict(os.environ)
    faulthandler.dump_traceback_later(2 * HANG, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
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
    """hooked(code, '--max_iters=5', ...): a toy run of train.py into tmp_path/out with a piece of code ahead of it."""
    def run(code, *args, settings=TOY):
        return hook(code, 'train.py', *settings, f'--dataset={corpus_dir}', '--out_dir=out', *args, cwd=tmp_path)
    return run


@pytest.fixture
def hooked_ranks(tmp_path, corpus_dir):
    """As hooked(), but as two ranks; returns the CompletedProcess of each."""
    def run(code, *args, settings=TOY):
        return ranks(2, HOOKED, code, TRAIN, *settings, f'--dataset={corpus_dir}', '--out_dir=out', *args, cwd=tmp_path)
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


def learned(out_dir):
    """Whether a run's validation loss has fallen by a half or more."""
    evaluations = read_metrics(out_dir)[1]
    return evaluations[-1]['val_loss'] < evaluations[0]['val_loss'] - 0.5


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
