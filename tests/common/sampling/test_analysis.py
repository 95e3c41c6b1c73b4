"""The analysis of a text: every number against the model's own, and how it is shown."""
import copy
import json
import math

import pytest
import torch

from common.sampling import analysis
from common.tokenizer import CharTokenizer


@pytest.mark.parametrize('T', [2, 9, 17, 18, 50])
def test_each_token_is_scored_with_all_before_it_or_half_a_context(model, T):
    ids = torch.randint(64, (T,))
    logprobs, ranks = analysis.score(model, ids)
    assert len(logprobs) == len(ranks) == T - 1
    for i in range(1, T):
        # windows of 16 begin at 0, and later so that the first token they score has 8 before it, the last 16
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


def test_an_empty_text_is_refused(model):
    with pytest.raises(ValueError, match='no text'):
        analysis.analyze(model, CHARS, '')


def test_probabilities_that_are_not_finite_are_refused(model):
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.lm_head.weight.mul_(6e4 / large.lm_head.weight.abs().max())
    assert analysis.analyze(large, CHARS, 'abc')['perplexity'] > 1
    with pytest.raises(ValueError, match='too large for float16; try --dtype=float32'):
        analysis.analyze(large.half(), CHARS, 'abc')
    with pytest.raises(ValueError, match='not finite'):
        analysis.next_tokens(torch.tensor([1.0, float('nan'), 2.0]), CHARS)


def test_a_perplexity_beyond_the_range_of_float32_is_a_number(model):
    large = copy.deepcopy(model)
    with torch.no_grad():
        large.lm_head.weight.mul_(100)
    result = analysis.analyze(large, CHARS, 'abc')
    assert result['perplexity'] == pytest.approx(2 ** result['bits_per_token'], rel=0.01)
    assert 3.4e38 < result['perplexity'] < math.inf


def test_the_page_escapes_the_text(model):
    page = analysis.page(analysis.analyze(model, CHARS, 'abc\n<&"'), 'out-<b>')
    assert '>&lt;</span>' in page and '>&amp;</span>' in page and 'out-&lt;b&gt;' in page and '<b>' not in page
    assert page.count('<tr>') == 10 and 'http' not in page


def test_the_report_has_colours_only_on_request(model):
    result = analysis.analyze(model, CHARS, 'abc')
    with_colours, without = ('\n'.join(analysis.report(result, colour)) for colour in (True, False))
    assert '\033[' in with_colours and '\033' not in without


@pytest.mark.parametrize('probability, expected', [(0, ''), (0.001, ''), (0.5, '█████'), (0.55, '█████▌'),
                                                   (1, 10 * '█')])
def test_a_bar_is_as_long_as_the_probability(probability, expected):
    assert analysis.bar(probability, width=10) == expected
