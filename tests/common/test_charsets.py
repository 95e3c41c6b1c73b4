"""Bytes that are not UTF-8: what they are taken for first, from a word on."""
import pytest

from common import charsets


@pytest.mark.parametrize('encoding, texts', [
    ('cp949', ['안녕', '한국어', '뭐해?', '카페라떼', 'The 고양이', '옛날 옛적에']), ('cp1251', ['Привет']), ('big5', ['你好世界']),
    ('koi8_r', ['привет мир']), ('shift_jis', ['こんにちは']), ('euc_jp', ['日本語']),
    ('cp1252', ['café au lait', 'naïve', 'Straße', 'El Niño', 'ÉCOLE']), ('cp1253', ['Καλημέρα']),
    ('utf-16-le', ['안녕, 세계', 'plain']), ('utf-16-be', ['plain'])])
def test_a_few_words_are_taken_for_what_they_are(encoding, texts):
    for text in texts:
        name, piece = charsets.guesses(text.encode(encoding))[0]
        assert (name, piece) == (encoding, repr(text))


def test_what_may_be_several_is_shown_in_each():
    assert [name for name, _ in charsets.guesses('你好'.encode('gb18030'))] == ['cp949', 'gb18030']


def test_noise_is_nothing():
    assert charsets.guesses(bytes(range(128, 256)) * 8) == [] and charsets.by_mark(b'plain') is None
