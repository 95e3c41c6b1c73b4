"""What the tests share: a corpus that they make, toy runs on it, and an environment that no test leaves changed."""
import faulthandler
import json
import os
import shutil
import signal
import sys
import tempfile

import pytest

from hooked import HANG
from running import ENVIRONMENT, HOOKED, ROOT, TRAIN, environment, hook, ok, python, ranks

sys.path[:0] = [ROOT, os.path.join(ROOT, 'data')]

# Toy sizes are faster on one thread of the CPU, and nothing may wait for a network. Set before torch is imported.
os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
# torch.compile's cache is this session's own: from a shared one PyTorch would take code that it compiled for a CPU that
# .ci/run emulated.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix='compiled-')
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = COMPILED.name
    os.environ['XDG_CACHE_HOME'] = COMPILED.name  # what is measured and compiled for generating, too
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell script: children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# 2 layers, 32 wide, 16 tokens of context: an iteration takes milliseconds
TOY = ['--device=cpu', '--dtype=float32', '--compile=False', '--n_layer=2', '--n_head=2', '--n_embd=32',
       '--block_size=16', '--batch_size=4', '--gradient_accumulation_steps=2', '--max_iters=20', '--lr_decay_iters=20',
       '--warmup_iters=2', '--learning_rate=1e-2', '--eval_interval=10', '--eval_iters=5']


def slow(*values):
    """A case of a parametrized test that takes long, and another case of which stays in the short command."""
    return pytest.param(*values, marks=pytest.mark.slow)


def pytest_collection_modifyitems(items):
    """What takes long and seldom breaks is marked `slow`, and not a part of the short command (CONTRIBUTING.md)."""
    if os.environ.get('NANOGPT_TESTS') != 'all':
        for item in items:
            if item.get_closest_marker('slow'):
                item.add_marker(pytest.mark.skip(reason='slow: with NANOGPT_TESTS=all'))
    items.sort(key=lambda item: item.path, reverse=True)  # test_train.py first, so that both workers end together


def pytest_collection_finish():
    ENVIRONMENT.update(environment())


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
    ok(python(script, '--input=mine.txt', '--out=.', *kind, *args, cwd=folder))
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
    ok(python(os.path.join(ROOT, 'train.py'), *TOY, f'--dataset={corpus_dir}', '--out_dir=out', cwd=folder))
    return str(folder / 'out')


@pytest.fixture(scope='session')
def chromium():
    """A headless Chromium, as distributions install it."""
    sync_api = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if program is None:
        pytest.skip('needs Chromium: apt install chromium')
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu'])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A page of a browser that may complain of nothing but requests without an answer; .asked has what it asked for."""
    context = chromium.new_context(viewport={'width': 1200, 'height': 1400})
    tab, wrong = context.new_page(), []
    tab.asked = []
    tab.on('pageerror', lambda error: wrong.append(str(error)))
    tab.on('console', lambda message: wrong.append(message.text))
    tab.on('request', lambda request: tab.asked.append(request.url))
    yield tab
    context.close()
    assert [text for text in wrong if not text.startswith('Failed to load resource')] == []


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


def tiny_state(iter_num=1, **more):
    """The checkpoint of a tiny model, all of whose weights are iter_num."""
    import torch
    from model import GPT, GPTConfig
    shape = dict(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=4, bias=False)
    weights = {key: torch.full_like(value, iter_num) for key, value in GPT(GPTConfig(**shape)).state_dict().items()}
    return dict(model=weights, model_args=shape, iter_num=iter_num, **more)


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
    ok(python(os.path.join(ROOT, 'train.py'), *DEMANDING, f'--dataset={corpus_dir}', '--out_dir=out', cwd=folder))
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
