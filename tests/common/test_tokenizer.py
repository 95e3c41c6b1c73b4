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
    text = 'x' + '\n' * 1_500_000 + 'the end'
    ids = gpt2.encode_corpus([text, 'more'])
    assert gpt2.decode(gpt2.encode(text)) == text
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


# the ids of a learned vocabulary of single bytes and <|endoftext|>, by byte
BYTES = tokenizer.BPETokenizer(tokenizer.train_bpe([''], 257))
IDS = {BYTES.bytes_of(i)[0]: i for i in range(257) if i != BYTES.end_id}


def ids_of(content):
    """An id for each byte."""
    return [IDS[byte] for byte in content]


def shown(content, *stops, end=True):
    """What a TextStream returns after each byte and at the end, and why it finished."""
    stream = tokenizer.TextStream(BYTES, stops)
    return [*map(stream.push, ids_of(content) + [BYTES.end_id] * end), stream.rest()], stream.finished


def test_a_character_is_shown_whole_or_not_at_all():
    pieces, finished = shown('a가🙂é'.encode())
    assert [piece for piece in pieces if piece] == ['a', '가', '🙂', 'é'] and finished == 'end'
    assert ''.join(shown(b'abc', end=False)[0]) == 'abc' and shown(b'abc', end=False)[1] is None


BROKEN = [  # bytes, and their text
    (b'\xff\xfe fine', r'\xff\xfe fine'), ('가'.encode()[:2], ''), ('나가'.encode()[:-1], '나'), (b'a\xf0\x9f\x99', 'a'),
    ('가'.encode()[1:] + b'b', r'\xb0\x80b'), ('가'.encode()[:2] + b'b', r'\xea\xb0b'), ('가'.encode()[:1] * 2, r'\xea'),
    (b'\xed\xa0\x80', r'\xed\xa0\x80'), (b'\xc0\xaf', r'\xc0\xaf'), (b'\xf4\x90', r'\xf4\x90'), (b'\x80', r'\x80'),
    ('\ufffd'.encode(), '\ufffd'), (b'', '')]


@pytest.mark.parametrize('content, text', BROKEN)
def test_bytes_that_are_no_character_become_escapes_and_a_cut_one_is_left_out(content, text):
    assert BYTES.decode(ids_of(content)) == text
    for end in (False, True):
        assert ''.join(shown(content, end=end)[0]) == text


def test_gpt2_shows_no_broken_character_either(gpt2):
    ids = gpt2.encode('안녕하세요')
    assert [gpt2.bytes_of(i) for i in ids[:3]] == [b'\xec', b'\x95', b'\x88']
    assert [gpt2.decode(ids[:n]) for n in (1, 2, 3, 4)] == ['', '', '안', '안']
    assert gpt2.decode(ids[1:4]) == r'\x95\x88' and gpt2.decode(gpt2.encode('\ufffd')) == '\ufffd'


def test_a_token_is_shown_by_its_characters_or_bytes(gpt2):
    for known, char in ((tokenizer.from_meta(CHAR), '가'), (BYTES, '\n'), (gpt2, ' the')):
        assert known.bytes_of(known.encode(char)[0]) == char.encode()
    assert gpt2.bytes_of(gpt2.end_id) == BYTES.bytes_of(BYTES.end_id) == b'<|endoftext|>'
    broken, whole = ids_of(b'\xec\x95'), gpt2.encode(' the')[0]
    assert [tokenizer.token_text(BYTES, i) for i in broken] == [r'\xec', r'\x95']
    assert tokenizer.token_text(gpt2, whole) == ' the'


def test_a_quoted_text_is_printable_and_shows_each_backslash_once():
    for text, expected in ((r' \xec', r"' \xec'"), ("it's", '"it\'s"'), ('\n', r"'\n'"), ('\x1b[2J\r', r"'\x1b[2J\r'"),
                           ('\u202e가\ufffd\ud800', "'\\u202e가\ufffd\\ud800'"), ('', "''")):
        assert tokenizer.quoted(text) == expected


def test_tokens_that_cross_characters_come_out_right():
    class Pieces:
        end_id = None
        bytes_of = lambda self, i: self.tokens[i]
    text = '穡梔ソ嚈荃の嚶按ポ🙂가é' * 3
    content = text.encode()
    for size in (1, 2, 3, 5):
        pieces = Pieces()
        pieces.tokens = [content[i:i + size] for i in range(0, len(content), size)]
        stream = tokenizer.TextStream(pieces)
        assert ''.join([stream.push(i) for i in range(len(pieces.tokens))] + [stream.rest()]) == text


def test_a_line_end_is_never_cut_in_two():
    assert [piece for piece in shown(b'a\r\nb\rc\r')[0] if piece] == ['a', '\r\n', 'b', '\rc', '\r']


def test_no_part_of_a_stop_string_is_shown():
    for text, stops, expected in (('one ###two', ['###'], 'one '), ('a#b##c###d', ['###'], 'a#b##c'),
                                  ('abcab', ['cab', 'bc'], 'a'), ('ab', ['abc'], 'ab'), ('가나', ['나'], '가')):
        pieces, finished = shown(text.encode(), *stops)
        so_far = list(itertools.accumulate(pieces))
        assert all(expected.startswith(part) for part in so_far)
        assert so_far[-1] == expected and finished == ('end' if text == 'ab' else 'stop')


OWN = {'tokenizer': 'ids', 'vocab_size': 512}


@pytest.mark.parametrize('text', ['12 5 77', ' 12  5\t77 ', '12\n5\r\n77\n', '12, 5, 77', '12,5,77,', '\u300012 5 077'])
def test_own_ids_are_read_however_people_write_them(text):
    own = tokenizer.from_meta(OWN)
    assert own.encode(text) == [12, 5, 77] and own.decode([12, 5, 77]) == '12 5 77'
    assert own.encode('') == own.encode(' \n,') == own.encode(own.decode([])) == []
    assert own.encode(own.decode(range(512))) == list(range(512))


@pytest.mark.parametrize('word', ['512', '-1', '+1', '1.0', '1_0', '0x1', '\uff11', '\u00b2', '[12', 'C#', '9' * 5000,
                                  '\udcff'])
def test_what_is_no_own_id_is_named(word):
    with pytest.raises(ValueError) as error:
        tokenizer.from_meta(OWN).encode(f'12 {word}, 511')
    said = str(error.value)
    assert said.startswith('the model knows the ids 0 to 511, with spaces between them, but not ') and len(said) < 150
    assert said.endswith(tokenizer.quoted(word[:40]))


def test_of_many_words_that_are_no_own_ids_five_are_named():
    with pytest.raises(ValueError, match="not 'a', 'b', 'c', 'd', 'e' and 1,001 more$"):
        tokenizer.from_meta(OWN).encode('a b a c d e ' + ' '.join(f'x{i}' for i in range(1001)))


@pytest.mark.parametrize('prompt', ['12 5', '12 5 ', '12 5\n', '12, 5,', ''])
def test_generated_own_ids_can_stand_behind_any_prompt(prompt):
    own = tokenizer.from_meta(OWN)
    stream = tokenizer.TextStream(own)
    text = ''.join([*map(stream.push, [7, 70, 0]), stream.rest()])
    assert own.encode(prompt + text) == own.encode(prompt) + [7, 70, 0] and text == f' {own.decode([7, 70, 0])}'


@pytest.mark.parametrize('stop, shown', [
    ('7', ' 77 17 5'), (' 7 ', ' 77 17 5'), ('5,7', ' 77 17'), ('17 5', ' 77'), ('9', ' 77 17 5 7'), ('1 2', None)])
def test_a_stop_among_own_ids_is_whole_ids_and_seen_at_once(stop, shown):
    stream = tokenizer.TextStream(tokenizer.from_meta(OWN), [stop])
    pieces = []
    for i in [77, 17, 5, 7, 9, 1]:
        pieces.append(stream.push(i))
        if stream.finished:
            break
    text = ''.join([*pieces, stream.rest()])
    assert text == (' 77 17 5 7 9 1' if shown is None else shown) and stream.finished == (shown and 'stop')
    if shown is not None:  # at the stop's own last id
        assert len(pieces) == len((shown + ' ' + stop.replace(',', ' ')).split())


def test_tokenizers_reads_own_ids_as_we_do():
    tokenizers = pytest.importorskip('tokenizers')
    own = tokenizer.from_meta(OWN)
    same = tokenizers.Tokenizer.from_str(own.to_json())
    for text in ('12 5 77', ' 12, 5\n77\t', '', own.decode(range(512))):
        ids = own.encode(text)
        assert same.encode(text).ids == ids and same.decode(ids) == own.decode(ids)


def test_own_ids_have_no_text_whose_bytes_could_be_counted():
    assert tokenizer.written(tokenizer.from_meta(OWN), '12 5') == ''
    assert tokenizer.written(tokenizer.from_meta(CHAR), 'a<|endoftext|>') == 'a<|endoftext|>'
    assert tokenizer.written(BYTES, 'a<|endoftext|>') == 'a'


def test_an_unknown_tokenizer_is_named():
    with pytest.raises(ValueError, match="'words'"):
        tokenizer.check_meta({'tokenizer': 'words', 'vocab_size': 4})


def test_a_learned_vocabulary_without_end_of_text_is_refused():
    content = BYTES.content.replace('<|endoftext|>', '<|other|>')
    with pytest.raises(ValueError, match=r'has no <\|endoftext\|>$'):
        tokenizer.check_meta({'tokenizer': 'bpe', 'vocab_size': 257, 'tokenizer_json': content})


@pytest.mark.parametrize('text, place', [
    ('abc\udce0', r"the byte \xe0, which is not UTF-8, at character 4, after 'abc'"),
    ('\udcb0\udca1', r'the byte \xb0, which is not UTF-8, at character 1'),
    ('a\ud83d', r"half a character, the surrogate \ud83d, at character 2, after 'a'"),
    ('\ud83d\ude00', r'half a character, the surrogate \ud83d, at character 1')])
def test_what_is_no_text_is_named_by_every_vocabulary(gpt2, text, place):
    for known in (tokenizer.from_meta(CHAR), BYTES, gpt2):
        with pytest.raises(ValueError) as error:
            known.encode(text)
        assert str(error.value) == f'the text cannot be encoded: it has {place}'


def test_a_large_alphabet_is_cut_in_a_message():
    known = tokenizer.CharTokenizer([chr(code) for code in range(0xac00, 0xac00 + 1157)])
    with pytest.raises(ValueError) as error:
        known.encode('abcdefghijklmnopqrstuvwxyz')
    assert ' and 6 more; it was trained on ' in str(error.value) and str(error.value).endswith(' and 1,137 more')
    assert len(str(error.value)) < 200 and "'가" in str(error.value)


def test_vocabularies_are_padded_for_tensor_cores_but_characters_and_own_ids_are_not():
    assert tokenizer.padded_vocab_size(GPT2) == 50304 and tokenizer.padded_vocab_size(CHAR) == 4
    assert tokenizer.padded_vocab_size({**OWN, 'vocab_size': 25}) == 25


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
