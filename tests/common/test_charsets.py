"""Bytes that are not UTF-8: what they are taken for first, from a word on."""
import pytest

from common import charsets


@pytest.mark.parametrize('encoding, texts', [
    ('cp949', ['안녕', '한국어', '뭐해?', '카페라떼', 'The 고양이', '옛날 옛적에']), ('cp1251', ['Привет']), ('big5', ['你好世界']),
    ('koi8_r', ['привет мир']), ('shift_jis', ['こんにちは']), ('euc_jp', ['日本語']),
    ('cp949', ['빨강', '펲시콜라 똠방각하']), ('shift_jis', ['いい']), ('euc_jp', ['東京タワー']),
    ('cp1252', ['café au lait', 'naïve', 'Straße', 'El Niño', 'ÉCOLE', 'Größe', 'it’s “fine”', 'The price is £5',
                '20°C', '§ 5 says', '«Quoted» text', 'Hôtel “Café…” à 5 €']), ('cp1253', ['Καλημέρα']),
    ('utf-16-le', ['안녕, 세계', '안녕하세요', 'plain']), ('utf-16-be', ['plain', '안녕하세요'])])
def test_a_few_words_are_taken_for_what_they_are(encoding, texts):
    for text in texts:
        name, piece = charsets.guesses(text.encode(encoding))[0]
        assert (name, piece) == (encoding, repr(text))


def test_what_may_be_several_is_shown_in_each():
    assert [name for name, _ in charsets.guesses('你好'.encode('gb18030'))] == ['cp949', 'gb18030']


def test_noise_is_nothing():
    assert charsets.guesses(bytes(range(128, 256)) * 8) == [] and charsets.by_mark(b'plain') is None
    assert charsets.guesses(b'a\0b') == [] and charsets.unicode_in(b'a\0b') is None, 'half a unit'


def test_a_few_damaged_or_odd_places_hide_no_encoding():
    lines = '옛날 옛적에 호랑이가 살았는데\n'.encode('cp949') * 50
    assert charsets.guesses(lines + b'\xff\xff\n' + lines)[0][0] == 'cp949'
    russian = 'Привет, USB-кабель\n' * 40 + 'Cкрытый'  # with a Latin C
    assert charsets.guesses(russian.encode('cp1251'))[0][0] == 'cp1251'


def test_what_is_of_ascii_bytes_alone_is_known_by_its_escapes_and_its_language():
    for name, text in (('iso2022_kr', '안녕 하세요'), ('iso2022_jp', '日本語です'), ('hz', '你好世界')):
        assert charsets.escaped_in(f'title\n{text}\n'.encode(name)) == name
    for content in (b'a ~{x} b', b'\x1b$ \x1b[0m', b'\x1b$B', b'~{', '\x1b$ 가'.encode()):
        assert charsets.escaped_in(content) is None
