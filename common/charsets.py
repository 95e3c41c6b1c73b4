"""Which encoding bytes are in that are not UTF-8: what their byte order mark says, or what they look like."""
import codecs
import re

PIECE = 2**16  # bytes that are enough to recognise an encoding
# UTF-32 first: its mark begins with that of UTF-16
MARKS = {codecs.BOM_UTF32_LE: 'utf-32', codecs.BOM_UTF32_BE: 'utf-32', codecs.BOM_UTF16_LE: 'utf-16',
         codecs.BOM_UTF16_BE: 'utf-16'}
UNICODE = ('utf-32-le', 'utf-32-be', 'utf-16-le', 'utf-16-be')
# the characters that a language is written in beyond ASCII, and its most frequent ones
KOREAN = '가-힣', '이다는의에가을하고지로한은를도사어기서아'
JAPANESE = 'ぁ-ゖァ-ヺー一-鿿', 'のにはをたがでてとしれさいるかもな'
CHINESE = '一-鿿', '的一是不了在人有我他你她这這中大来來上国國个個到'
RUSSIAN = 'А-яЁё', 'оеаинтсрвл'
LIKELY = {'cp949': KOREAN, 'johab': KOREAN, 'shift_jis': JAPANESE, 'euc_jp': JAPANESE, 'gb18030': CHINESE,
          'big5': CHINESE, 'cp1251': RUSSIAN, 'koi8_r': RUSSIAN, 'cp1253': ('Ά-ώ', 'αοιετσνηυρ'),
          'cp1255': ('א-ת', 'יהולארתבמ'), 'cp1256': ('ء-ي', 'اليمونرتب'), 'cp874': ('ก-๛', 'านรอกเงมยล'),
          'cp1252': ('À-ÖØ-öø-ÿŒœŸŠšŽž', 'éèàçêáíóúñãõäöüßåæøïîôûëâÉÀÇÖÜÄ')}
MIXABLE = ('cp949', 'johab', 'shift_jis', 'euc_jp', 'gb18030', 'big5', 'cp1252')  # with Latin letters in a word
NEUTRAL = '\u2000-\u206f\u3000-\u303f\uff00-\uffef'  # punctuation of all languages


def by_mark(content):
    """utf-16 or utf-32, if bytes begin with its byte order mark; else None."""
    return next((name for mark, name in MARKS.items() if content.startswith(mark)), None)


def unicode_in(content):
    """The form of UTF-16 or UTF-32 that bytes without a mark are in; None if in none."""
    for name in UNICODE if 0 in content else ():
        text = decode_strictly(content, name)
        if text and '\0' not in text and (text.isascii() or re.search('[ \n]', text)) and is_printable(text):
            return name
    return None


def decode_strictly(content, encoding):
    """The text in bytes that may end within a character; None if they are not in that encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeError:
        return None


def is_printable(text):
    """Whether nearly all characters are such as a text has: random ones of Unicode are not."""
    return sum(char.isprintable() or char.isspace() for char in text) >= 0.98 * len(text)


def guesses(content):
    """What bytes that are not UTF-8 may be: at most three [(encoding, a piece of the text)], the likeliest first."""
    if name := by_mark(content) or unicode_in(content):
        return [(name, piece_of(decode_strictly(content, name) or ''))]
    found = []
    for name, (script, frequent) in LIKELY.items():
        text = decode_strictly(content, name)
        letters = [char for char in text or '' if char.isalpha()]
        foreign = re.findall(f'[^\x00-\xbf{NEUTRAL}]', text or '')
        fits = len(re.findall(f'[{script}]', ''.join(foreign)))
        mixed = name not in MIXABLE and re.search(f'[A-Za-z][{script}]|[{script}][A-Za-z]', text or '')
        if foreign and fits >= 0.8 * len(foreign) and is_printable(text) and not mixed and (
                name != 'cp1252' or len(foreign) <= 0.3 * len(letters)):
            score = sum(char in frequent for char in foreign) / len(foreign)
            if name == 'cp949' and fits == len(foreign) and decode_strictly(content, 'euc_kr'):
                score = max(score, 0.6)  # nothing but usual syllables, which no other text becomes by chance
            found.append((score, name, text))
    best = max((score for score, _, _ in found), default=0)
    found = sorted((each for each in found if each[0] >= best / 2), key=lambda each: -each[0])
    return [(name, piece_of(text)) for _, name, text in found[:3]]


def piece_of(text):
    """A few words of a text, quoted, around its first character beyond ASCII."""
    first = next((i for i, char in enumerate(text) if ord(char) > 127), 0)
    start = max(text.rfind('\n', 0, first) + 1, first - 20)
    return repr(text[start:start + 40].strip('\r\n').partition('\n')[0])
