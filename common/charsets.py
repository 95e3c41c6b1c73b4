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
JAPANESE = 'ぁ-ゖァ-ヺー一-鿿', 'のにはをたがでてとしれさいるかもなーンスルトリクラタイ'
CHINESE = '一-鿿', '的一是不了在人有我他你她这這中大来來上国國个個到'
# of ASCII bytes alone: the escape that each has, and its language
ESCAPED = {'iso2022_kr': (b'\x1b$', KOREAN), 'iso2022_jp': (b'\x1b$', JAPANESE), 'hz': (b'~{', CHINESE)}
RUSSIAN = 'А-яЁё', 'оеаинтсрвл'
# of several that are as likely the first one is taken
LIKELY = {'cp949': KOREAN, 'johab': KOREAN, 'utf-16-le': KOREAN, 'utf-16-be': KOREAN, 'shift_jis': JAPANESE,
          'euc_jp': JAPANESE, 'gb18030': CHINESE, 'big5': CHINESE,
          'cp1252': ('À-ÖØ-öø-ÿŒœŸŠšŽž', 'éèàçêáíóúñãõäöüßåæøïîôûëâÉÀÇÖÜÄ'), 'cp1251': RUSSIAN, 'koi8_r': RUSSIAN,
          'cp1253': ('Ά-ώ', 'αοιετσνηυρ'), 'cp1255': ('א-ת', 'יהולארתבמ'), 'cp1256': ('ء-ي', 'اليمونرتب'),
          'cp874': ('ก-๛', 'านรอกเงมยล')}
ALPHABETS = ('cp1251', 'koi8_r', 'cp1253', 'cp1255', 'cp1256', 'cp874')  # without Latin letters in a word
NEUTRAL = '\u2000-\u206f\u20a0-\u20cf\u2122\u3000-\u303f\uff00-\uffff'  # signs of all languages, and U+FFFD
DAMAGED = 0.02  # the part of what is not ASCII that may be broken, or odd
FEW = 20        # characters beyond ASCII; fewer may be by chance what they look like


def iconv_name(encoding):
    """What iconv calls one of Python's encodings."""
    return re.sub('-(le|be)$', r'\1', encoding.replace('_', '-'))


def by_mark(content):
    """utf-16 or utf-32, if bytes begin with its byte order mark; else None."""
    return next((name for mark, name in MARKS.items() if content.startswith(mark)), None)


def unicode_in(content):
    """The form of UTF-16 or UTF-32 that bytes without a mark are in, at most PIECE of them; None if in none."""
    for name in UNICODE if 0 in content else ():
        text = decode_strictly(content, name)
        rest = len(content) % (4 if '32' in name else 2)
        if rest > content.endswith(b'\n'):  # a line of jsonl ends within its \n
            continue
        if text and '\0' not in text and (text.isascii() or re.search('[ \n]', text)) and is_printable(text):
            return name
    return None


def escaped_in(content):
    """The encoding with ASCII bytes alone that bytes are in, Korean, Japanese or Chinese; None if in none."""
    for name, (escape, (script, _)) in ESCAPED.items() if content.isascii() else ():
        text = escape in content and decode_strictly(content, name) or ''
        foreign = re.findall(f'[^\0-\x7f{NEUTRAL}]', text)
        if foreign and len(re.findall(f'[{script}]', text)) >= 0.8 * len(foreign):
            return name
    return None


def decode_strictly(content, encoding):
    """The text in bytes that may end within a character; None if they are not in that encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeError:
        return None


def decode_mostly(content, encoding):
    """decode_strictly(), but with U+FFFD in a few damaged places."""
    text = codecs.getincrementaldecoder(encoding)('replace').decode(content)
    return text if text.count('\ufffd') <= DAMAGED * sum(char > '\x7f' for char in text) else None


def is_printable(text):
    """Whether nearly all characters are such as a text has: random ones of Unicode are not."""
    return sum(char.isprintable() or char.isspace() for char in text) >= 0.98 * len(text)


def guesses(content):
    """What bytes that are not UTF-8 may be: at most three [(encoding, a piece of the text)], the likeliest first."""
    if name := by_mark(content) or unicode_in(content):
        return [(name, piece_of(decode_strictly(content, name) or ''))]
    texts = {name: decode_mostly(content, name) for name in LIKELY}
    found = [(likelihood(name, text), name) for name, text in texts.items() if text and is_printable(text)]
    best = max((score or 0 for score, _ in found), default=0)
    found = sorted((each for each in found if each[0] is not None and each[0] >= best / 2), key=lambda each: -each[0])
    return [(name, piece_of(texts[name])) for _, name in found[:3]]


def likelihood(name, text):
    """How much a text reads like one in that encoding's language, 0 to 1; None if it is none."""
    script, frequent = LIKELY[name]
    foreign = re.findall(f'[^\x00-\xbf{NEUTRAL}]', text)
    beyond = re.findall(f'[^\0-\x7f{NEUTRAL}]', text)
    if name == 'cp1252' and not text.isascii() and not any(map(str.isalnum, beyond)):  # quotes and signs in English
        return 0.6 if re.search('[^\0-\x7f]{2}', text) else 1
    fits = len(re.findall(f'[{script}]', ''.join(foreign)))
    if not foreign or fits < 0.8 * len(foreign) or name in UNICODE and fits < 4 or (
            name == 'cp1252' and len(beyond) > 0.4 * sum(map(str.isalpha, text))):
        return None
    odd = len(re.findall(f'(?=[A-Za-z][{script}]|[{script}][A-Za-z])', text)) if name in ALPHABETS else 0
    odd += sum(a > '\x7f' and a.islower() and b > '\x7f' and b.isupper() for a, b in zip(text, text[1:]))
    if odd > DAMAGED * len(foreign):
        return None
    score = sum(char in frequent for char in foreign) / len(foreign)
    if (name == 'cp949' or name in UNICODE) and fits == len(foreign) and (
            decode_strictly(''.join(foreign).encode('cp949'), 'euc_kr') is not None):
        score = max(score, 0.6)  # nothing but usual syllables, which no other text becomes by chance
    return score


def is_clear(content, encoding):
    """Whether bytes have so much beyond ASCII that they are not by chance what they look like."""
    return 0 in content or sum(char > '\x7f' for char in decode_mostly(content, encoding) or '') >= FEW


def piece_of(text):
    """A few words of a text, quoted, around its first character beyond ASCII."""
    first = next((i for i, char in enumerate(text) if ord(char) > 127), 0)
    start = max(text.rfind('\n', 0, first) + 1, first - 20)
    return repr(text[start:start + 40].strip('\r\n').partition('\n')[0])
