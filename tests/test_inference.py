"""A model made ready to generate: packed, in 8 bits, compiled for a step; and what it then makes of a text."""
import copy
import json
import math

import pytest
import torch

from common import analysis, generate, inference
from common.tokenizer import CharTokenizer
from model import GPT, GPTConfig


@pytest.fixture(scope='module', params=[False, True], ids=['classic', 'modern'])
def model(request):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=2, n_head=2, n_embd=32, modern=request.param)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.fixture
def larger():
    """A model whose matrices are large enough to be packed."""
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, vocab_size=600, n_layer=1, n_head=2, n_embd=256)).eval()


def linears(model):
    return {type(module).__name__ for module in model.modules() if 'Linear' in type(module).__name__}


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('bfloat16', 0.02)])
def test_packed_weights_change_no_logit(larger, dtype, tolerance):
    if not torch.backends.mkldnn.is_available():
        pytest.skip('PyTorch comes without oneDNN here')
    packed, idx = copy.deepcopy(larger).to(getattr(torch, dtype)), torch.randint(600, (3, 7))
    inference.pack(packed, 'cpu', dtype)
    assert 'PackedLinear' in linears(packed)
    with torch.no_grad():
        assert torch.allclose(packed(idx, idx)[0].float(), larger(idx, idx)[0], atol=tolerance)
        assert torch.allclose(packed(idx[:1, :1])[0].float(), larger(idx[:1, :1])[0], atol=tolerance)
        if dtype == 'float32':
            assert torch.equal(packed.generate(idx, 9, temperature=0), larger.generate(idx, 9, temperature=0))


def test_small_matrices_and_float16_are_left_as_they_are(model, larger):
    for one, dtype in ((copy.deepcopy(model), 'float32'), (larger.half(), 'float16')):
        inference.pack(one, 'cpu', dtype)
        assert linears(one) == {'Linear'}


def test_where_nothing_can_be_packed_a_line_says_so(larger, monkeypatch, capsys):
    def refuse(linear):
        raise RuntimeError('no such function')
    monkeypatch.setattr(inference, 'PackedLinear', refuse)
    inference.pack(larger, 'cpu', 'float32')
    assert 'no such function' in capsys.readouterr().out and linears(larger) == {'Linear'}


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
        # in bfloat16 the scale itself is rounded, to 8 bits: 127 steps of it may fall short of the largest weight
        slack = 1e-7 if dtype == torch.float32 else 0.5 * step
        assert ((rounded - linear.weight.float()).abs() <= step / 2 + slack).all() and eight.weight.dtype == torch.int8
        x = torch.randn(rows, 2, 64, dtype=dtype)
        expected = torch.nn.functional.linear(x.float(), rounded, linear.bias.float())
        assert torch.allclose(eight(x).float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_int8_tells_what_it_costs(model):
    eight, ids = copy.deepcopy(model), torch.randint(64, (4, 16))
    with torch.no_grad():
        before, after = inference.quantize(eight, ids)
        assert before == pytest.approx(model(ids[:, :-1], ids[:, 1:])[1].exp().item())
        assert after == pytest.approx(eight(ids[:, :-1], ids[:, 1:])[1].exp().item())
    assert linears(eight) == {'Int8Linear'} and before != after == pytest.approx(before, rel=0.02)


def test_a_compiled_step_is_compiled_once_and_writes_the_same(model):
    torch._dynamo.reset()
    step = inference.compile_step(model, 2, 16, 'cpu')
    if step is None:
        pytest.skip('torch.compile does not work here')
    for T in (1, 5):
        idx, cache = torch.randint(64, (2, T)), generate.KVCache(16, static=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            written = model.generate(idx, 40, temperature=0, cache=cache, step=step)
        assert torch.equal(written, model.generate(idx, 40, temperature=0))


def test_a_step_that_does_not_compile_runs_in_eager_and_says_so(model, monkeypatch, capsys):
    def no_compiler(*args, **kwargs):
        raise RuntimeError('Failed to find C++ compiler')
    monkeypatch.setattr(torch, 'compile', lambda model, mode: no_compiler)
    assert inference.compile_step(model, 1, 16, 'cpu') is None
    assert 'running eager instead' in capsys.readouterr().out


# what the model makes of a text

@pytest.mark.parametrize('T', [2, 9, 17, 18, 50])
def test_each_token_is_scored_with_all_before_it_or_half_a_context(model, T):
    ids = torch.randint(64, (T,))
    logprobs, ranks = analysis.score(model, ids)
    assert len(logprobs) == len(ranks) == T - 1
    for i in range(1, T):
        # windows of 16 begin at 0, and then so that the first token they score has 8 before it, the last one 16
        window = 0 if i <= 16 else 9 * ((i - 17) // 9 + 1)
        with torch.no_grad():
            expected = model(ids[None, window:i])[0][0, -1].log_softmax(dim=-1)
        assert logprobs[i - 1].item() == pytest.approx(expected[ids[i]].item(), abs=1e-5)
        assert ranks[i - 1] == 1 + (expected > expected[ids[i]]).sum()


CHARS = CharTokenizer(['\n', *'abcdefgh<&"', *'ABCDEFGHIJKLMNOPQRSTUVWXYZ'])


def test_the_analysis_is_the_models_probabilities(model):
    text = 'abc\n<&"'
    result = analysis.analyze(model, CHARS, text)
    assert ''.join(token['text'] for token in result['tokens']) == result['text'] == text
    ids = torch.tensor([[0] + CHARS.encode(text)])
    with torch.no_grad():
        logits = model(ids[:, :-1], ids[:, 1:])[0][0, :, :CHARS.vocab_size]
        after = model(ids)[0][0, -1, :CHARS.vocab_size].softmax(dim=-1)
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
    assert result['perplexity'] == pytest.approx(math.exp(loss), rel=1e-5)
    assert result['bits_per_token'] == result['bits_per_character'] == pytest.approx(loss / math.log(2), rel=1e-5)
    for token, row, i in zip(result['tokens'], logits.softmax(dim=-1), ids[0, 1:]):
        assert token['id'] == i and token['probability'] == pytest.approx(row[i].item(), rel=1e-4)
        assert token['surprisal'] == pytest.approx(-math.log2(row[i].item()), abs=1e-4)
    best = after.topk(10)
    assert [row['id'] for row in result['next']] == best.indices.tolist()
    assert [row['probability'] for row in result['next']] == pytest.approx(best.values.tolist(), rel=1e-4)
    json.dumps(result)


def test_a_text_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match='no text'):
        analysis.analyze(model, CHARS, '')


def test_the_page_shows_the_text_and_nothing_else_of_it_is_html(model):
    page = analysis.page(analysis.analyze(model, CHARS, 'abc\n<&"'), 'out-<b>')
    assert '>&lt;</span>' in page and '>&amp;</span>' in page and 'out-&lt;b&gt;' in page and '<b>' not in page
    assert page.count('<tr>') == 10 and 'http' not in page


def test_colours_only_where_they_are_asked_for(model):
    result = analysis.analyze(model, CHARS, 'abc')
    with_colours, without = ('\n'.join(analysis.report(result, colour)) for colour in (True, False))
    assert '\033[' in with_colours and '\033' not in without


@pytest.mark.parametrize('probability, expected', [(0, ''), (0.001, ''), (0.5, '█████'), (0.55, '█████▌'),
                                                   (1, 10 * '█')])
def test_a_bar_is_as_long_as_the_probability(probability, expected):
    assert analysis.bar(probability, width=10) == expected
