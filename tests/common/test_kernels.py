"""The kernels of kernels.c: the same numbers as PyTorch's, and where they come from."""
import itertools
import os
import stat
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from common import cpu, generate, inference, kernels, linears
from conftest import slow
from model import GPT, GPTConfig
from running import ROOT, ok, python

needs_kernels = pytest.mark.skipif(kernels.try_to_load()[0] is None, reason=f'{kernels.try_to_load()[1]}')
LOAD = 'from common import kernels; library, reason = kernels.try_to_load(); print(reason)'


@needs_kernels
@pytest.mark.parametrize('dtype', kernels.TYPES, ids=str)
@pytest.mark.parametrize('rows', [1, 2, 3, 4, 5, 7, 11])
@pytest.mark.parametrize('N', [4, 20, 21, 23])
def test_a_product_is_that_of_the_weights_as_they_are_stored(dtype, rows, N):
    torch.manual_seed(rows)
    scale, bias = torch.rand(N), torch.randn(N)
    weight = torch.randint(-127, 128, (N, 192)).to(dtype) if dtype == torch.int8 else torch.randn(N, 192).to(dtype)
    x = torch.randn(rows, 1, 192)
    for used in ((None, None), (scale, None), (None, bias), (scale, bias)):
        expected = F.linear(x.double(), weight.double()) * (1 if used[0] is None else scale.double())
        expected = expected + (0 if used[1] is None else bias.double())
        y = kernels.linear(kernels.matrix(weight, *used), x)
        assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        assert torch.equal(kernels.linear(kernels.matrix(weight, *used), x.mT.contiguous().mT), y)  # made contiguous


@needs_kernels
def test_what_float16_has_is_kept_to_the_last_digit():
    """Subnormal numbers, too: the library does not let the process flush them to 0."""
    values = torch.tensor([6e-8, 6.1e-5, 1.0, -2.5, 65504.0, 0.0] * 32, dtype=torch.float16)[:128]
    weight = torch.diag_embed(values.float()).half()
    assert torch.equal(kernels.linear(kernels.matrix(weight), torch.ones(1, 128))[0], values.float())
    tiny = torch.full((1,), 1e-39)
    assert (tiny * 0.5).item() > 0


@needs_kernels
@pytest.mark.parametrize('shape', [(4, 32), (4, 96), (3, 64)])
def test_a_matrix_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=f'no matrix of {shape[0]} x {shape[1]}'):
        kernels.matrix(torch.zeros(shape))


MODELS = {'classic': dict(), 'without biases': dict(bias=False, activation='gelu_tanh'), 'modern': dict(modern=True)}


@pytest.fixture(scope='module', params=MODELS)
def pair(request):
    """A model, and the same by the kernel, in float32."""
    torch.manual_seed(0)
    shape = dict(block_size=24, vocab_size=80, n_layer=2, n_head=4, n_embd=128)
    model = GPT(GPTConfig(**shape, **MODELS[request.param])).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))  # so that activations go far beyond 1
    fast = GPT(model.config).eval()
    fast.load_state_dict(model.state_dict())
    for module in list(fast.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, linears.Kernel(child.weight, child.bias, torch.float32))
    fast.transformer.h = torch.nn.ModuleList([inference.Blocks(fast.transformer.h)])
    return model, fast


@needs_kernels
@pytest.mark.parametrize('rows', [1, 3, 4, 18])
@pytest.mark.parametrize('half', [False, True], ids=['float32', 'float16'])
@torch.no_grad()
def test_a_step_of_all_blocks_is_that_of_the_model(pair, rows, half):
    """Beyond the context, too; with keys and values in 16 bits to their precision."""
    model, fast = pair
    fast.cache_dtype = torch.float16 if half else None
    ours, theirs = generate.KVCache(24), generate.KVCache(24)
    length = 40 if model.config.modern else 24
    ids = torch.randint(80, (rows, length))
    for begin, end in ((0, 5), *((i, i + 1) for i in range(5, length))):
        expected = generate.feed(model, ids[:, begin:end], theirs)
        logits = generate.feed(fast, ids[:, begin:end], ours)
        assert torch.allclose(logits, expected, rtol=1e-4, atol=(2e-2 if half else 2e-4) * expected.std().item())
    assert ours.keys[0].dtype == (torch.float16 if half else torch.float32)


@needs_kernels
@torch.no_grad()
def test_a_step_sees_no_padding_and_begins_at_the_first_token(pair):
    model, fast = pair
    fast.cache_dtype = None
    padding, ids = torch.tensor([0, 3, 5]), torch.randint(80, (3, 12))
    ours, theirs = generate.KVCache(24, padding), generate.KVCache(24, padding)
    for begin, end in ((0, 6), *((i, i + 1) for i in range(6, 12))):
        expected = generate.feed(model, ids[:, begin:end], theirs)
        logits = generate.feed(fast, ids[:, begin:end], ours)
        assert torch.allclose(logits, expected, rtol=1e-4, atol=2e-4 * expected.std().item())


@needs_kernels
@pytest.mark.parametrize('activation', kernels.ACTIVATIONS)
def test_an_activation_is_exact_to_six_digits(activation):
    """Seen through a block whose attention adds nothing, and whose other matrices only hand on."""
    def matrix(weight, bias=None):
        return kernels.matrix(weight, None, bias)
    zero, wide = torch.zeros(3 * 64, 64), torch.cat((torch.eye(64), torch.zeros(3 * 64, 64)))
    x = torch.linspace(-9, 9, 64)
    bias = torch.cat((x, torch.zeros(3 * 64)))
    steps = kernels.Steps([([matrix(zero), matrix(torch.zeros(64, 64)), matrix(0 * wide, bias), matrix(wide.T)],
                            [None] * 4)], 4, activation, 1.0)
    cache = [torch.zeros(1, 4, 1, 16)], [torch.zeros(1, 4, 1, 16)]
    y = steps(torch.zeros(1, 1, 64), None, *cache, slot=0, used=1)[0, 0]
    expected = F.relu(x.double()) ** 2 if activation == 'relu_squared' else F.gelu(x.double(), approximate=activation)
    assert (y - expected).abs().max() < 1e-6 * 81


@needs_kernels
def test_what_does_not_belong_together_is_refused_before_memory_is_read(pair):
    model, fast = pair
    cache = generate.KVCache(24)
    with torch.no_grad():
        generate.feed(fast, torch.zeros(4, 3, dtype=torch.long), cache)
        with pytest.raises((AssertionError, RuntimeError)):
            generate.feed(fast, torch.zeros(1, 1, dtype=torch.long), cache)
    for x in (torch.zeros(2, 32), torch.zeros(1, 64, dtype=torch.bfloat16)):
        with pytest.raises(AssertionError):
            kernels.linear(kernels.matrix(torch.zeros(4, 64)), x)


@needs_kernels
@torch.no_grad()
def test_numbers_that_are_not_finite_stay_so(pair):
    """Or a run that has diverged would write text."""
    model, fast = pair
    ids = torch.randint(80, (1, 4))
    for value, kind in itertools.product((float('nan'), float('inf')), ('keys', 'values')):
        cache = generate.KVCache(24)
        generate.feed(fast, ids, cache)
        getattr(cache, kind)[0][:, :, 2] = value
        with pytest.raises(ValueError, match='not finite'):
            generate.next_token(fast, torch.cat((ids, ids[:, :1]), dim=1), cache)


@needs_kernels
def test_heads_that_do_not_fit_are_refused():
    matrix = kernels.matrix(torch.zeros(4, 64))
    with pytest.raises(ValueError, match='no heads of 8'):
        kernels.Steps([([matrix] * 4, [None] * 4)], 8, 'none', 1.0)


@needs_kernels
def test_it_is_compiled_once_for_a_user_and_found_again(tmp_path):
    here = dict(XDG_CACHE_HOME=str(tmp_path))
    assert ok(python('-c', LOAD, cwd=ROOT, **here)).stdout == 'None\n'
    assert [path.suffix for path in (tmp_path / 'nanogpt').iterdir()] == ['.so']
    assert stat.S_IMODE((tmp_path / 'nanogpt').stat().st_mode) & 0o077 == 0
    assert ok(python('-c', LOAD, cwd=ROOT, PATH='', **here)).stdout == 'None\n'


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize('content', [b'', b'\x7fELF and no more'])
def test_a_damaged_library_is_compiled_again(tmp_path, content):
    here = dict(XDG_CACHE_HOME=str(tmp_path))
    ok(python('-c', LOAD, cwd=ROOT, **here))
    path, = (tmp_path / 'nanogpt').iterdir()
    path.unlink()
    path.write_bytes(content)
    assert ok(python('-c', LOAD, cwd=ROOT, **here)).stdout == 'None\n'
    assert [each.name for each in (tmp_path / 'nanogpt').iterdir()] == [path.name] and path.stat().st_size > 1000


@needs_kernels
@pytest.mark.parametrize('obstacle', ['open to a group', *map(slow, ('open to others', 'a file', 'no home'))])
def test_without_a_folder_of_the_users_own_it_is_compiled_for_the_process(tmp_path, obstacle):
    env = dict(XDG_CACHE_HOME=str(tmp_path))
    if 'open' in obstacle:
        (tmp_path / 'nanogpt').mkdir()
        (tmp_path / 'nanogpt').chmod(0o777 if 'others' in obstacle else 0o770)
    elif obstacle == 'a file':
        (tmp_path / 'nanogpt').write_text('mine')
    else:
        env = dict(XDG_CACHE_HOME='', HOME='')
    assert ok(python('-c', LOAD, cwd=ROOT, **env)).stdout == 'None\n'
    if 'open' in obstacle:
        assert not list((tmp_path / 'nanogpt').iterdir())


@pytest.mark.parametrize('compiler, reason', [
    ('no-such-compiler', 'there is no C compiler, such as gcc or clang'),
    slow('false', 'false does not compile kernels.c: exit code 1'), slow('cc "', 'is no command'),
    ('true', 'true does not compile kernels.c: what it makes cannot be loaded'),
    (f'{sys.executable} -c "import sys; sys.exit(\'kernels.c:1: error: no such type\')"', 'error: no such type')])
def test_without_a_compiler_that_works_there_is_a_reason(tmp_path, compiler, reason):
    done = ok(python('-c', LOAD + '; kernels.try_to_load()', cwd=ROOT, CC=compiler, XDG_CACHE_HOME=str(tmp_path)))
    assert reason in done.stdout


def test_the_reason_is_asked_for_once(monkeypatch):
    def open_library():
        calls.append(1)
        raise kernels.Missing('none')
    calls = []
    monkeypatch.setattr(kernels, 'open_library', open_library)
    kernels.try_to_load.cache_clear()
    try:
        for _ in range(3):
            with pytest.raises(kernels.Missing, match='none'):
                kernels.load()
        assert calls == [1]
    finally:
        kernels.try_to_load.cache_clear()


def test_another_cpu_or_another_limit_gets_code_of_its_own(monkeypatch):
    names = []
    for capability in ('AVX512', 'AVX2', 'DEFAULT'):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
        names.append(kernels.fingerprint())
    monkeypatch.setattr(cpu, 'facts', lambda: {'model name': 'another', 'flags': 'sse2'})
    names.append(kernels.fingerprint())
    x86 = kernels.platform.machine() in ('x86_64', 'AMD64')
    assert len(set(names)) == len(names) or not x86


@needs_kernels
@pytest.mark.parametrize('options', [['-mavx2', '-mfma', '-mf16c'], []], ids=['AVX2', 'no vectors'])
def test_every_kind_of_cpu_compiles_without_a_warning(tmp_path, options):
    if options and kernels.platform.machine() not in ('x86_64', 'AMD64'):
        pytest.skip('AVX2 is of x86-64')
    done = subprocess.run([*kernels.find_compiler(), *kernels.FLAGS, *options, '-Wall', '-Wno-psabi', kernels.SOURCE,
                           '-Wno-unknown-pragmas', '-o', str(tmp_path / 'k.so'), '-lm'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert os.path.getsize(tmp_path / 'k.so') > 0
