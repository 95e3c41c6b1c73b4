"""A model made fast at generating: by the kernels of this CPU, in 8 bits, with a compiled step."""
import copy
import functools
from unittest.mock import Mock

import pytest
import torch

from common import generate, inference, kernels, linears
from model import GPT, GPTConfig


@pytest.fixture
def larger():
    """A model whose matrices are large enough for a kernel."""
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, vocab_size=600, n_layer=1, n_head=2, n_embd=256)).eval()


def linears_of(model):
    return {type(module).__name__ for module in model.modules() if 'Linear' in type(module).__name__}


@pytest.fixture
def quick(monkeypatch):
    """No measuring: our kernel where it is, else the first. Returns whether it is."""
    def measure(shapes, precision):
        names = [name for name, kind in linears.CANDIDATES[precision].items() if name != 'kernels.c' or has_kernels]
        return {shape: {name: [1 if name == 'kernels.c' else 2] * 2 for name in names} for shape in shapes}
    has_kernels = kernels.try_to_load()[0] is not None
    monkeypatch.setattr(linears, 'measured', measure)
    return has_kernels


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('float16', 2e-3), ('bfloat16', 2e-2), ('int8', 5e-2)])
@torch.no_grad()
def test_a_specialized_model_computes_with_rounded_weights(larger, quick, capsys, dtype, tolerance):
    fast, idx = copy.deepcopy(larger), torch.randint(600, (3, 7))
    inference.specialize(fast, *(('auto', True) if dtype == 'int8' else (dtype,)))
    assert capsys.readouterr().err.startswith(f'{dtype} by ')
    assert ('Blocks' in {type(module).__name__ for module in fast.modules()}) == quick
    deviation = larger(idx, idx)[0].std().item()
    for ids in (idx, idx[:1, :1]):
        logits = fast(ids, ids)[0]
        assert logits.dtype == torch.float32
        assert torch.allclose(logits, larger(ids, ids)[0], atol=tolerance * deviation * 10, rtol=0)
    written = fast.generate(idx, 9, temperature=0)
    if dtype == 'float32':
        assert torch.equal(written, larger.generate(idx, 9, temperature=0))
    for length in range(7, 16):  # what is written with the cache is the likeliest without it
        logits = fast(written[:, :length])[0][:, -1]
        likeliest = logits.gather(1, written[:, length:length + 1])
        assert (logits.amax(dim=1, keepdim=True) - likeliest <= tolerance * deviation).all()


def test_the_weights_take_no_more_memory_than_their_precision(larger, quick):
    """The output layer and the embedding share theirs in 16 bits, too."""
    inference.specialize(larger, 'float16')
    head, embedding = larger.lm_head, larger.transformer.wte
    if quick:
        assert head.weight.data_ptr() == embedding.weight.data_ptr()
    assert head.weight.dtype == embedding.weight.dtype == torch.float16
    assert embedding(torch.tensor([[3]])).dtype == torch.float32


def test_where_another_kernel_is_faster_the_blocks_stay_as_they_are(larger, monkeypatch):
    monkeypatch.setattr(linears, 'measured', lambda shapes, precision: {shape: {'F.linear': [1, 1], 'kernels.c': [2, 2]}
                                                                        for shape in shapes})
    plain, idx = copy.deepcopy(larger), torch.randint(600, (1, 4))
    inference.specialize(larger, 'float32')
    assert 'Blocks' not in {type(module).__name__ for module in larger.modules()} and larger.cache_dtype is None
    assert torch.equal(larger.generate(idx, 9, temperature=0), plain.generate(idx, 9, temperature=0))


@pytest.mark.parametrize('faster', ['float32', 'float16'])
@pytest.mark.parametrize('too_large', [False, True])
@pytest.mark.parametrize('small', [False, True])
def test_auto_is_what_is_fastest_for_a_large_model(larger, monkeypatch, capsys, faster, too_large, small):
    """In a small one the noise of measuring would decide which text is written."""
    if not small:
        monkeypatch.setattr(inference, 'LARGE', 2**16)
    def measure(shapes, precision):
        return {shape: {'F.linear': [1 + (precision != faster)] * 2} for shape in shapes}
    monkeypatch.setattr(linears, 'measured', measure)
    if too_large:
        with torch.no_grad():
            larger.transformer.h[0].mlp.c_fc.weight[3, 5] = 1e5
    inference.specialize(larger, 'auto')
    expected = 'float32' if too_large or small else faster
    assert capsys.readouterr().err.startswith(f'{expected} by F.linear')


def test_a_small_model_stays_in_float32_without_a_word(model, capsys):
    fast, ids = copy.deepcopy(model), torch.randint(64, (2, 5))
    inference.specialize(fast, 'auto')
    assert capsys.readouterr() == ('', '') and linears_of(fast) == {'Linear'}
    with torch.no_grad():
        assert torch.allclose(fast(ids)[0], model(ids)[0], atol=1e-6)


def test_a_small_model_in_8_bits_has_rounded_weights_and_its_own_embedding(model):
    eight = copy.deepcopy(model)
    inference.specialize(eight, 'float32', int8=True)
    assert torch.equal(eight.transformer.wte.weight, model.transformer.wte.weight)
    assert torch.equal(eight.lm_head.weight, linears.rounded(model.lm_head.weight, torch.int8))


def test_a_cache_that_overflows_is_told(larger, quick):
    """Keys and values are kept in float16, which not every model fits."""
    if not quick:
        pytest.skip(kernels.try_to_load()[1])
    with torch.no_grad():
        larger.transformer.h[0].attn.c_attn.weight[512:] *= 2e5
    inference.specialize(larger, 'float16')
    ids = torch.randint(600, (1, 4))
    for write in (lambda: larger.generate(ids, 3),
                  lambda: generate.beam_search(larger, ids, 3, 2, cache=generate.KVCache(16))):
        with pytest.raises(ValueError, match='too large for float16; try --dtype=float32'):
            write()


def test_a_vocabulary_of_any_size_has_a_kernel(quick, monkeypatch):
    """GPT-2's own has 50,257 ids."""
    model = GPT(GPTConfig(block_size=16, vocab_size=601, n_layer=1, n_head=2, n_embd=128)).eval()
    fast = copy.deepcopy(model)
    inference.specialize(fast, 'float32')
    ids = torch.randint(601, (2, 5))
    assert not quick or isinstance(fast.lm_head, linears.Kernel)
    assert torch.equal(fast.generate(ids, 9, temperature=0), model.generate(ids, 9, temperature=0))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('rows', [1, 50])
def test_int8_on_a_gpu_multiplies_by_the_rounded_weights(dtype, rows):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48).to(dtype)
    with torch.no_grad():
        eight = inference.Int8Linear(linear)
        x = torch.randn(rows, 2, 64, dtype=dtype)
        rounded = eight.weight.float() * eight.scale.float()[:, None]
        expected = torch.nn.functional.linear(x.float(), rounded, linear.bias.float())
        assert torch.allclose(eight(x).float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_int8_in_float16_computes_what_float16_can_hold():
    linear = torch.nn.Linear(64, 1).half()
    with torch.no_grad():
        linear.weight.fill_(1.0)
        assert inference.Int8Linear(linear)(torch.full((1, 64), 9.0).half()).item() == pytest.approx(576, rel=0.01)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_perplexity_has_more_digits_than_16_bits_have(model, dtype):
    plain, ids = copy.deepcopy(model).to(dtype), torch.randint(64, (4, 16))
    with torch.no_grad():
        logits = plain(ids[:, :-1], ids[:, 1:])[0].float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()
    assert inference.perplexity(plain, ids) == pytest.approx(expected)
    inference.quantize(plain)
    assert linears_of(plain) == {'Int8Linear'}
    assert expected != inference.perplexity(plain, ids) == pytest.approx(expected, rel=0.02)


def test_weights_that_float16_cannot_hold_are_refused(model):
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.transformer.wte.weight[3, 5] = 1e5
    for dtype in ('float32', 'bfloat16'):
        inference.convert(copy.deepcopy(large), 'cpu', dtype)
    inference.convert(copy.deepcopy(model), 'cpu', 'float16')
    for make in (lambda: inference.convert(large, 'cpu', 'float16'), lambda: inference.specialize(large, 'float16')):
        with pytest.raises(ValueError, match='weights of this model are too large for float16; try --dtype=float32'):
            make()


def test_a_perplexity_that_is_not_finite_is_refused(model):
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.lm_head.weight.mul_(6e4 / large.lm_head.weight.abs().max())
    ids = torch.randint(64, (4, 16))
    inference.perplexity(large, ids)
    with pytest.raises(ValueError, match='too large for float16; try --dtype=float32'):
        inference.perplexity(large.half(), ids)


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_a_compiled_step_is_compiled_once_and_writes_the_same(model, monkeypatch, backend):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=backend))
    step = inference.compile_step(model, 2, 16, 'cpu')
    if step is None and backend == 'inductor':
        pytest.skip('no compiler on this machine')
    for T in (1, 5):
        idx, cache = torch.randint(64, (2, T)), generate.KVCache(16, static=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            written = model.generate(idx, 40, temperature=0, cache=cache, step=step)
        assert torch.equal(written, model.generate(idx, 40, temperature=0))


def test_a_step_that_does_not_compile_runs_in_eager_and_says_so(model, monkeypatch, capsys):
    no_compiler = Mock(side_effect=RuntimeError('Failed to find C++ compiler'))
    monkeypatch.setattr(torch, 'compile', lambda model, **options: no_compiler)
    assert inference.compile_step(model, 1, 16, 'cpu') is None
    assert 'running eager instead' in capsys.readouterr().out
