"""A model made fast at generating: packed, in 8 bits, with a compiled step."""
import copy
import functools
import platform
import re
from unittest.mock import Mock

import pytest
import torch

from common import generate, inference
from model import GPT, GPTConfig
from running import ROOT, python


@pytest.fixture
def larger():
    """A model whose matrices are large enough to be packed."""
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, vocab_size=600, n_layer=1, n_head=2, n_embd=256)).eval()


def linears(model):
    return {type(module).__name__ for module in model.modules() if 'Linear' in type(module).__name__}


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('bfloat16', 0.02)])
def test_packed_weights_change_no_logit(larger, capsys, dtype, tolerance):
    """Where oneDNN cannot pack them on this CPU they stay as they are, and a line says so."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip('PyTorch comes without oneDNN here')
    packed, idx = copy.deepcopy(larger).to(getattr(torch, dtype)), torch.randint(600, (3, 7))
    inference.pack(packed, 'cpu', dtype)
    reason = inference.why_not_packed(dtype)
    assert ('PackedLinear' in linears(packed)) == (reason is None)
    assert capsys.readouterr().out == ('' if reason is None else
                                       f'oneDNN packs no weights here ({reason}): generating takes longer\n')
    with torch.no_grad():
        assert torch.allclose(packed(idx, idx)[0].float(), larger(idx, idx)[0], atol=tolerance)
        assert torch.allclose(packed(idx[:1, :1])[0].float(), larger(idx[:1, :1])[0], atol=tolerance)
        if dtype == 'float32':
            assert torch.equal(packed.generate(idx, 9, temperature=0), larger.generate(idx, 9, temperature=0))


@pytest.mark.skipif(platform.machine() not in ('x86_64', 'AMD64') or not torch.backends.mkldnn.is_available(),
                    reason='oneDNN emulates only x86-64 CPUs')
def test_an_older_cpu_packs_float32_and_no_bfloat16():
    code = 'from common.inference import why_not_packed as w; print([w(d) for d in ("float32", "bfloat16")])'
    done = python('-c', code, cwd=ROOT, ONEDNN_MAX_CPU_ISA='AVX2', DNNL_MAX_CPU_ISA='AVX2')
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[None, '.*bf16.*'\]\n", done.stdout), done.stdout


def test_small_matrices_and_float16_are_left_as_they_are(model, larger):
    for one, dtype in ((copy.deepcopy(model), 'float32'), (larger.half(), 'float16')):
        inference.pack(one, 'cpu', dtype)
        assert linears(one) == {'Linear'}


@pytest.mark.parametrize('error', [RuntimeError('no such function\nand a long story'), AttributeError('gone'),
                                   RuntimeError()])
def test_where_nothing_can_be_packed_a_line_says_so(larger, monkeypatch, capsys, error):
    monkeypatch.setattr(inference, 'PackedLinear', Mock(side_effect=error))
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    inference.pack(larger, 'cpu', 'float32')
    reason = str(error).partition('\n')[0] or 'RuntimeError'
    assert f'packs no weights here ({reason}): ' in capsys.readouterr().out and linears(larger) == {'Linear'}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('rows', [1, 8, 9, 50])
def test_int8_rounds_each_weight_to_the_nearest_step(dtype, rows):
    """A step is a 127th of an output's largest weight. The product is that of the rounded weights."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48).to(dtype)
    with torch.no_grad():
        linear.weight[3] = 0
        eight = inference.Int8Linear(linear)
        rounded = eight.weight.float() * eight.scale.float()[:, None]
        step = linear.weight.float().abs().amax(dim=1, keepdim=True) / 127
        # in bfloat16 the scale itself is rounded to 8 bits, so 127 steps may fall short of the largest weight
        slack = 1e-7 if dtype == torch.float32 else 0.5 * step
        assert ((rounded - linear.weight.float()).abs() <= step / 2 + slack).all() and eight.weight.dtype == torch.int8
        x = torch.randn(rows, 2, 64, dtype=dtype)
        expected = torch.nn.functional.linear(x.float(), rounded, linear.bias.float())
        assert torch.allclose(eight(x).float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_int8_in_float16_computes_what_float16_can_hold():
    linear = torch.nn.Linear(64, 1).half()
    with torch.no_grad():
        linear.weight.fill_(1.0)
        assert inference.Int8Linear(linear)(torch.full((1, 64), 9.0).half()).item() == pytest.approx(576, rel=0.01)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_int8_returns_the_perplexity_before_and_after(model, dtype):
    """With more digits than bfloat16 has."""
    def perplexity(model):
        with torch.no_grad():
            logits = model(ids[:, :-1], ids[:, 1:])[0].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()
    plain, ids = copy.deepcopy(model).to(dtype), torch.randint(64, (4, 16))
    eight = copy.deepcopy(plain)
    before, after = inference.quantize(eight, ids)
    assert before == pytest.approx(perplexity(plain)) and after == pytest.approx(perplexity(eight))
    assert linears(eight) == {'Int8Linear'} and before != after == pytest.approx(before, rel=0.02)


def test_weights_that_float16_cannot_hold_are_refused(model):
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.transformer.wte.weight[3, 5] = 1e5
    for dtype in ('float32', 'bfloat16'):
        inference.convert(copy.deepcopy(large), 'cpu', dtype)
    inference.convert(copy.deepcopy(model), 'cpu', 'float16')
    with pytest.raises(ValueError, match='too large for float16; try --dtype=float32'):
        inference.convert(large, 'cpu', 'float16')


def test_int8_of_a_model_that_computes_no_finite_numbers_is_refused(model):
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.lm_head.weight.mul_(6e4 / large.lm_head.weight.abs().max())
    ids = torch.randint(64, (4, 16))
    inference.quantize(copy.deepcopy(large), ids)
    with pytest.raises(ValueError, match='too large for float16; try --dtype=float32'):
        inference.quantize(large.half(), ids)


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
