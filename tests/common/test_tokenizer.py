"""Text to ids and back, and which vocabularies are compatible."""
import itertools
import os
import random
from unittest.mock import Mock

import pytest

from common import tokenizer

CHAR = {'tokenizer': 'char', 'vocab_size': 4, 'chars': '\nab가'}
GPT2 = {'tokenizer': 'gpt2', 'vocab_size': 50257}


@pytest.fixture
def gpt2():
    pytest.importorskip('tiktoken')
    if not os.environ.get('TIKTOKEN_CACHE_DIR'):
        pytest.skip("needs GPT-2's vocabulary files: set TIKTOKEN_CACHE_DIR to a folder that has them")
    return tokenizer.from_meta(GPT2)


def test_characters_come_back():
    text = tokenizer.from_meta(CHAR)
    assert text.decode(text.encode('ab\n가b')) == 'ab\n가b' and text.encode('\nab가') == [0, 1, 2, 3]


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match="'xy'"):
        tokenizer.from_meta(CHAR).encode('axby')


def test_gpt2_text_comes_back(gpt2):
    text = 'Hello, 세계! <|endoftext|> again'
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text and gpt2.end_id in ids and gpt2.encode('Hello world') == [15496, 995]


def test_gpt2_s_words_are_split_as_tiktoken_splits_them(gpt2):
    import tiktoken
    theirs, choices = tiktoken.get_encoding('gpt2'), random.Random(0).choices
    parts = ['a', 'The', ' ', '  ', '\n', '\r\n', '\t', "'", "'s", "'LL", "'ll", '7', '12', '가', '!', '?!', '\u3000',
             '\xa0', '\x1c', '\u2028', 'é', 'e\u0301', '🙂', '_', '<|endoftext|>', '٣', 'ß', ' cat']
    texts = [''.join(choices(parts, k=60)) for _ in range(500)]
    for ours, text in zip(gpt2.encode_corpus(texts), texts, strict=True):
        assert ours.tolist() == theirs.encode_ordinary(text)
        assert gpt2.encode(text) == theirs.encode(text, allowed_special='all')
    assert [ids.tolist() for ids in gpt2.encode_corpus(['a b', '', 'c'])] == theirs.encode_batch(['a b', '', 'c'])


def test_a_million_blanks_in_a_row_do_not_break_gpt2(gpt2):
    ids = gpt2.encode_corpus(['x' + '\n' * 1_500_000 + 'the end', 'more'])
    assert gpt2.decode(ids[0]) == 'x' + '\n' * 1_500_000 + 'the end' and gpt2.decode(ids[1]) == 'more'


def test_without_a_network_the_message_names_two_files_and_their_place(monkeypatch):
    tiktoken = pytest.importorskip('tiktoken')
    tokenizer.load_gpt2.cache_clear()
    monkeypatch.setattr(tiktoken, 'get_encoding', Mock(side_effect=ConnectionError('no network')))
    with pytest.raises(ValueError) as error:
        tokenizer.from_meta(GPT2)
    said = str(error.value)
    assert 'TIKTOKEN_CACHE_DIR' in said
    assert 'encodings/main/vocab.bpe as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee' in said
    assert 'encodings/main/encoder.json as 6c7ea1a7e38e3a7f062df639a5b80947f075ffe6' in said


def test_learned_bpe_text_comes_back():
    bpe = tokenizer.BPETokenizer(tokenizer.train_bpe(['the cat sees the dog, 가나다'] * 9, 280))
    text = 'Hello, 세계! <|endoftext|> the cat 🙂'
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and bpe.end_id in ids and bpe.vocab_size <= 280
    in_corpus = bpe.encode_corpus([text])[0].tolist()
    assert bpe.decode(in_corpus) == text and bpe.end_id not in in_corpus, 'there it is ordinary text'


class Bytes:
    """A tokenizer with one id per byte; 256 is end-of-text."""
    end_id = 256

    def decode(self, ids):
        return bytes(ids).decode(errors='replace')


def shown(text, *stops, end=True):
    """What a TextStream returns after each byte of a text and at the end, and why it finished."""
    stream = tokenizer.TextStream(Bytes(), stops)
    return [*map(stream.push, [*text.encode(), *[256] * end]), stream.rest()], stream.finished


def test_a_character_is_shown_whole_or_not_at_all():
    pieces, finished = shown('a가🙂é')
    assert [piece for piece in pieces if piece] == ['a', '가', '🙂', 'é'] and finished == 'end'
    assert ''.join(shown('abc', end=False)[0]) == 'abc' and shown('abc', end=False)[1] is None


def test_invalid_bytes_do_not_stop_the_stream():
    stream = tokenizer.TextStream(Bytes())
    text = ''.join(stream.push(byte) for byte in [0xff, 0xfe, 0xfd, 0xfc, 0xfb, *b'fine'])
    assert text.endswith('fine') and '\ufffd' in text
    stream.push(0xea)  # the first byte of three
    assert stream.rest() == '\ufffd'


def test_tokens_that_cross_characters_come_out_right():
    class Pairs(Bytes):
        decode = lambda self, ids: b''.join(self.tokens[i] for i in ids).decode(errors='replace')
    text = '穡梔ソ嚈荃の嚶按ポ🙂가é' * 3
    content = text.encode()
    for size in (1, 2, 3, 5):
        pairs = Pairs()
        pairs.tokens = [content[i:i + size] for i in range(0, len(content), size)]
        stream = tokenizer.TextStream(pairs)
        assert ''.join([stream.push(i) for i in range(len(pairs.tokens))] + [stream.rest()]) == text


def test_no_part_of_a_stop_string_is_shown():
    for text, stops, expected in (('one ###two', ['###'], 'one '), ('a#b##c###d', ['###'], 'a#b##c'),
                                  ('abcab', ['cab', 'bc'], 'a'), ('ab', ['abc'], 'ab'), ('가나', ['나'], '가')):
        pieces, finished = shown(text, *stops)
        so_far = list(itertools.accumulate(pieces))
        assert all(expected.startswith(part) for part in so_far)
        assert so_far[-1] == expected and finished == ('end' if text == 'ab' else 'stop')


def test_an_unknown_tokenizer_is_named():
    with pytest.raises(ValueError, match="'words'"):
        tokenizer.check_meta({'tokenizer': 'words', 'vocab_size': 4})


def test_a_vocabulary_that_cannot_encode_a_text_says_so():
    learned = tokenizer.BPETokenizer(tokenizer.train_bpe(['a b'], 257))
    with pytest.raises(ValueError, match='the text cannot be encoded'):
        learned.encode('half a character: \udce0')


def test_vocabularies_are_padded_for_tensor_cores_but_characters_are_not():
    assert tokenizer.padded_vocab_size(GPT2) == 50304 and tokenizer.padded_vocab_size(CHAR) == 4


@pytest.mark.parametrize('theirs, vocab_size, fits', [
    (CHAR, 4, True), (None, 4, True), (dict(CHAR, chars='\nabc'), 4, False), (GPT2, 50304, False), (None, 5, False)])
def test_only_the_same_vocabulary_fits(theirs, vocab_size, fits):
    if fits:
        tokenizer.check_same(CHAR, theirs, vocab_size)
    else:
        with pytest.raises(ValueError, match='vocabularies differ'):
            tokenizer.check_same(CHAR, theirs, vocab_size)


@pytest.mark.parametrize('vocab_size', [50257, 50304])
def test_gpt2_weights_fit_gpt2_data_padded_or_not(vocab_size):
    tokenizer.check_same(GPT2, None, vocab_size)
