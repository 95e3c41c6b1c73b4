"""Prompts as users give them: on the command line, in a file, through a pipe. It knows no model."""
import ast
import os
import shlex
import sys
import unicodedata

from common import charsets
from common.tokenizer import check_text


def read(start):
    """
    The prompts that `start` means, a list of str: a text, or a list of texts as Python writes it; FILE:PATH, the text
    of a file; LINES:PATH, a file with one a line; or -, standard input. ValueError if it is no text.
    """
    if start.startswith('FILE:'):
        return [read_file(start.removeprefix('FILE:'), f'start={start!r}')]
    if start.startswith('LINES:'):
        return read_lines(start.removeprefix('LINES:'), f'start={start!r}')
    if start == '-':
        try:
            return [decode(sys.stdin.buffer.read(), "start='-'").removesuffix('\n')]  # of echo, or of the last Enter
        except OSError as error:
            raise ValueError(f"start='-' cannot be read: {error.strerror}") from None
    texts = None
    if start.startswith('['):
        try:
            texts = ast.literal_eval(start.encode(errors='backslashreplace').decode())  # as configurator.py does
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass  # a text that begins with a bracket
    is_list = texts and isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return texts if is_list else [start]


def read_lines(path, name):
    """The lines of a file, a list; `name` stands for it in messages. ValueError if there are none, or it is no text."""
    text = read_file(path, name)
    if not text:
        raise ValueError(f'{name} is empty; it should have a prompt a line')
    return text.removesuffix('\n').split('\n')


def read_file(path, name):
    """The text of a file; `name` stands for it in messages. ValueError if it cannot be read, or is no text."""
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise ValueError(f'{name} cannot be read: {getattr(error, "strerror", error)}') from None
    return decode(content, name, path)


def decode(content, name, path='FILE'):
    """
    Bytes as text with \\n at the ends of lines: UTF-8, or what a byte order mark says, which a line on stderr repeats.
    ValueError if it is no text, with the command that converts it.
    """
    encoding = charsets.by_mark(content) or 'utf-8-sig'
    kind = encoding.upper().removesuffix('-SIG')
    if kind == 'UTF-8' and 0 in content:
        raise ValueError(f'{name} is not UTF-8 text, at byte {content.index(0)}: it has a NUL there'
                         f'{advice(content, 0, path)}')
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        is_cut = 'unexpected end' in error.reason or 'truncated' in error.reason
        why = ': it ends within a character, as if it had been cut off' if is_cut else advice(
            content, error.start, path)
        raise ValueError(f'{name} is not {kind} text, at byte {error.start}{why}') from None
    if kind != 'UTF-8':
        say(f'{name} is {kind}, as its byte order mark says')
    return text.replace('\r\n', '\n').replace('\r', '\n')


def advice(content, at, path):
    """What bytes that are not UTF-8 from place `at` on may be, and what to type."""
    found = charsets.guesses(content[:charsets.PIECE]) if content[:at].isascii() else []
    if not found:
        return f'; {conversion("ENCODING", path)}'
    readings = ''.join(f'. As {encoding} it reads {piece}' for encoding, piece in found)
    return f'{readings}. If {"the first" if len(found) > 1 else "that"} is right, {conversion(found[0][0], path)}'


def conversion(encoding, path):
    encoding = encoding.replace('_', '-')  # as iconv calls them
    return f'to convert it: iconv -f {encoding} -t utf-8 {shlex.quote(path)} > {shlex.quote(path + ".utf8")}'


def check(text, name):
    """ValueError if a str is no text, with the place of what is none; `name` stands for it in the message."""
    check_text(text, name)
    if '\0' in text:
        raise ValueError(f'{name} has a NUL at character {text.index(chr(0)) + 1}, which no text has')


def encode(tokenizer, texts):
    """
    The prompts as [(text, ids)]. A text with decomposed characters (Hangul from macOS) is taken in NFC where only that
    is in the vocabulary, or takes fewer tokens; a line on stderr says so. ValueError for what cannot be encoded.
    """
    found = []
    for i, text in enumerate(texts):
        try:
            found.append(encode_one(tokenizer, text))
        except ValueError as error:
            raise ValueError(f'prompt {i + 1} of {len(texts)}: {error}' if len(texts) > 1 else str(error)) from None
    composed = sum(text != given for given, (text, _) in zip(texts, found))
    if composed:
        which = 'the prompt has' if len(texts) == 1 else f'{composed} of {len(texts)} prompts have'
        say(f'{which} decomposed characters (NFD): taken in NFC, which suits this vocabulary better')
    return found


def encode_one(tokenizer, text):
    """(text or its NFC, ids): what takes fewer tokens, the text as it is if both take the same."""
    check(text, 'the text')
    forms, failures = [], []
    for form in dict.fromkeys((text, unicodedata.normalize('NFC', text))):
        try:
            forms.append((form, tokenizer.encode(form)))
        except ValueError as error:
            failures.append(error)
    if not forms:
        raise failures[0]
    return min(forms, key=lambda form: len(form[1]))


def say(line):
    """Print a line on stderr, once for all ranks of a run."""
    if os.environ.get('RANK', '0') == '0':
        print(line, file=sys.stderr)
