"""The analysis of a text: every number against the model's own, and how the terminal shows it."""
import copy
import dataclasses
import json
import math
import re

import pytest
import torch
from wcwidth import wcswidth

from common.sampling import analysis
from common.tokenizer import BPETokenizer, CharTokenizer, train_bpe


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
    assert result['accuracy'] == pytest.approx((logits.argmax(dim=-1) == ids[0, 1:]).float().mean().item())
    for token, row, i in zip(result['tokens'], logits.softmax(dim=-1), ids[0, 1:]):
        assert token['id'] == i and token['probability'] == pytest.approx(row[i].item(), rel=1e-4)
        assert token['surprisal'] == pytest.approx(-math.log2(row[i].item()), abs=1e-4)
    best = after.topk(10)
    assert [row['id'] for row in result['next']] == best.indices.tolist()
    assert [row['probability'] for row in result['next']] == pytest.approx(best.values.tolist(), rel=1e-4)
    json.dumps(result)


# nearly all of its tokens are single bytes
BYTES = BPETokenizer(train_bpe(['가나 가나다'], 262))


def wide(model, vocab_size):
    """A random model with the shape of another and more ids."""
    torch.manual_seed(0)
    return type(model)(dataclasses.replace(model.config, vocab_size=vocab_size)).eval()


def test_a_character_of_several_tokens_is_one_piece_with_the_sum_of_their_surprisals(model):
    text = '안 가녕🙂<|endoftext|>a'
    result = analysis.analyze(wide(model, BYTES.vocab_size), BYTES, text)
    tokens, pieces = result['tokens'], result['pieces']
    assert ''.join(piece['text'] for piece in pieces) == text and '\ufffd' not in json.dumps(result)
    assert [piece['text'] for piece in pieces if piece['tokens'] > 1][-1] == '🙂' and len(pieces) < len(tokens)
    begin = 0
    for piece in pieces:
        own = tokens[begin:begin + piece['tokens']]
        assert b''.join(BYTES.bytes_of(token['id']) for token in own) == piece['text'].encode()
        assert piece['surprisal'] == pytest.approx(sum(token['surprisal'] for token in own))
        begin += piece['tokens']
    assert begin == len(tokens) and [token['text'] for token in tokens][:3] == [r'\xec', r'\x95', r'\x88']
    colour = analysis.shade(pieces[0]['surprisal'])
    assert f'48;5;{colour}m안\033[0m' in next(analysis.report(result, True))


def test_bits_a_byte_are_the_loss_over_the_bytes_of_the_text(model):
    text = '가a<|endoftext|>나'
    result = analysis.analyze(wide(model, BYTES.vocab_size), BYTES, text)
    bits = sum(token['surprisal'] for token in result['tokens'])
    assert result['bits_per_byte'] == pytest.approx(bits / 7)
    assert result['bits_per_character'] == pytest.approx(bits / 3)
    assert result['bits_per_token'] == pytest.approx(bits / len(result['tokens']))
    assert (f'{bits / len(result["tokens"]):.2f} bits a token, {bits / 3:.2f} a character, {bits / 7:.2f} a byte; '
            f'accuracy {result["accuracy"]:.1%}') in analysis.summary(result)
    alone = analysis.analyze(wide(model, BYTES.vocab_size), BYTES, '<|endoftext|>')
    assert alone['bits_per_byte'] is alone['bits_per_character'] is None and 'a byte' not in analysis.summary(alone)


def test_beyond_the_context_the_figures_are_called_too_high(model):
    for T, expected in ((16, False), (17, True)):
        result = analysis.analyze(model, CHARS, 'a' * T)
        note = '. From token 17 on the model sees 8 to 16 tokens before each one, which slightly overestimates'
        assert (note in analysis.summary(result)) == expected
        assert result['context'] == 16


def test_the_columns_of_the_tables_stand_below_each_other(model):
    known = CharTokenizer(['\n', *'가나a\t🙂e\u0301\u1100'])
    result = analysis.analyze(wide(model, 8), known, '가a\t🙂e\u0301나')
    lines = list(analysis.report(result, False))
    assert len({wcswidth(line[:line.index('%')]) for line in lines[1:7]}) == 1
    assert len({wcswidth(line.rstrip('█▏▎▍▌▋▊▉')) for line in lines[-8:]}) == 1 and lines[-9].endswith('next:')


def test_control_characters_are_shown_and_not_obeyed(model):
    known = CharTokenizer('\n\x1b\x9b[2J\r')
    result = analysis.analyze(wide(model, 7), known, '\x1b[2J\x9b\r\n')
    shown = re.sub(r'\033\[(30;48;5;\d+|0)m', '', '\n'.join(analysis.report(result, True)))
    assert not set(shown) & set('\x1b\x9b\r') and r'\x1b' in shown and r'\x9b' in shown
    assert result['text'] == ''.join(piece['text'] for piece in result['pieces']) == '\x1b[2J\x9b\r\n'


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


def test_the_report_has_colours_only_on_request(model):
    result = analysis.analyze(model, CHARS, 'abc')
    with_colours, without = ('\n'.join(analysis.report(result, colour)) for colour in (True, False))
    assert '\033[' in with_colours and '\033' not in without


@pytest.mark.parametrize('probability, expected', [(0, ''), (0.001, ''), (0.5, '█████'), (0.55, '█████▌'),
                                                   (1, 10 * '█')])
def test_a_bar_is_as_long_as_the_probability(probability, expected):
    assert analysis.bar(probability, width=10) == expected
