"""Prompts from the command line, files and pipes."""
import io
import re
import shutil
import subprocess
import unicodedata
from types import SimpleNamespace

import pytest

from common import prompts
from common.tokenizer import BPETokenizer, CharTokenizer, train_bpe

KOREAN = '안녕하세요. 오늘은 날씨가 좋다'


@pytest.fixture
def file(tmp_path, monkeypatch):
    """file(bytes): writes them to p.txt in the working directory."""
    monkeypatch.chdir(tmp_path)
    return (tmp_path / 'p.txt').write_bytes


@pytest.mark.parametrize('start, texts', [
    ('the', ['the']), ('', ['']), ("['the', 'a\\n']", ['the', 'a\n']), ("['']", ['']), ('[]', ['[]']),
    ('[1, 2]', ['[1, 2]']), ("['a', b]", ["['a', b]"]), ('[' * 10000, ['[' * 10000]), ("('a', 'b')", ["('a', 'b')"]),
    ('FILE', ['FILE']), ('file:x', ['file:x'])])
def test_a_list_of_texts_is_several_prompts_and_all_else_one(start, texts):
    assert prompts.read(start) == texts


def test_a_file_is_one_prompt_or_has_one_a_line(file):
    file('\ufeffthe\r\n\r\na cat\x0b\u2028\n'.encode())
    assert prompts.read('FILE:p.txt') == ['the\n\na cat\x0b\u2028\n']
    assert prompts.read('LINES:p.txt') == ['the', 'a cat\x0b\u2028'], 'other ends of lines end none here'
    file(b'')
    assert prompts.read('FILE:p.txt') == ['']
    with pytest.raises(ValueError, match="^start='LINES:p.txt' is empty; it should have a prompt a line$"):
        prompts.read('LINES:p.txt')


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-32', 'utf-16-le', 'utf-16-be'])
def test_a_byte_order_mark_says_how_a_prompt_is_read(file, capsys, encoding):
    file(('\ufeff' * encoding.endswith('e') + KOREAN).encode(encoding))
    assert prompts.read('FILE:p.txt') == [KOREAN]
    assert capsys.readouterr().err == f"start='FILE:p.txt' is {encoding.upper()[:6]}, as its byte order mark says\n"


@pytest.mark.parametrize('content, problem', [
    (KOREAN.encode('cp949'), f' 0. As cp949 it reads {KOREAN!r}. If that is right, to convert it: '
                             'iconv -f cp949 -t utf-8 p.txt > p.txt.utf8'),
    ('Prompt:\n안녕'.encode('cp949'), " 8. As cp949 it reads '안녕'"),
    (KOREAN.encode()[:-1], ' 40: it ends within a character, as if it had been cut off'),
    (KOREAN.encode() + b'\xff', ' 43; to convert it: iconv -f ENCODING'),
    ('café'.encode('latin-1') + b' au lait', " 3. As cp1252 it reads 'café au lait'"),
    (b'\0\xfe', ' 1; to convert it: iconv -f ENCODING'),
    (b'un caf\xe9', " 6. As cp1252 it reads 'un café'"),
    (b'a' * 2**17 + b' caf\xe9', f" {2**17 + 4}. As cp1252 it reads '"),
    (b'\xef\xbb\xbfab\xff', ' 5; to convert it'),
    *((KOREAN.encode(encoding), f': it has a NUL there. As {encoding} it reads {KOREAN!r}. If that is right, '
                                f'to convert it: iconv -f {encoding.replace("-le", "le").replace("-be", "be")} -t')
      for encoding in ('utf-16-le', 'utf-16-be', 'utf-32-le', 'utf-32-be'))])
def test_what_is_no_utf_8_is_named_with_the_command_that_converts_it(file, monkeypatch, content, problem):
    file(content)
    monkeypatch.setattr('sys.stdin', SimpleNamespace(buffer=io.BytesIO(content)))
    for start in ('FILE:p.txt', 'LINES:p.txt', '-'):
        with pytest.raises(ValueError) as error:
            prompts.read(start)
        said = str(error.value).replace('FILE > FILE.utf8', 'p.txt > p.txt.utf8')
        assert said.startswith(f'start={start!r} is not UTF-8 text, at byte') and problem in said and '\0' not in said


def test_utf_16_that_is_cut_off_is_told(file):
    file('가'.encode('utf-16')[:-1])
    with pytest.raises(ValueError, match='is not UTF-16 text, at byte 2: it ends within a character'):
        prompts.read('FILE:p.txt')


@pytest.mark.skipif(not shutil.which('iconv'), reason='there is no iconv here')
def test_the_command_that_converts_a_prompt_does_it_and_its_result_is_what_to_type(file, tmp_path):
    for encoding in ('utf-16-le', 'utf-16-be', 'utf-32-le', 'utf-32-be', 'cp949', 'johab'):
        file(KOREAN.encode(encoding))
        for kind in ('FILE', 'LINES'):
            said = prompts.conversion(encoding, f'{kind}:p.txt', 'start')
            command, option = re.fullmatch("to convert it: (.*), then --start=(.*)", said).groups()
            subprocess.run(command, shell=True, check=True)
            assert prompts.read(option) == [KOREAN]
    said = prompts.conversion('euc_jp', "LINES:it's.txt", 'sample_prompts')
    assert said.endswith("""'it'"'"'s.txt' > 'it'"'"'s.txt.utf8', then '--sample_prompts=LINES:it'"'"'s.txt.utf8'""")
    assert prompts.conversion('cp949', '-', 'start').endswith('FILE > FILE.utf8, then --start=FILE:FILE.utf8')


def test_a_nul_is_a_character_like_others_unless_there_are_many(file):
    file(b'a\0b')
    text, = prompts.read('FILE:p.txt')
    assert prompts.encode(CharTokenizer('ab\0'), [text]) == [('a\0b', [0, 2, 1])]
    with pytest.raises(ValueError, match=r"does not know the characters '\\x00'"):
        prompts.encode(CharTokenizer('ab'), [text])


LEARNED = BPETokenizer(train_bpe([KOREAN] * 9, 320))
DECOMPOSED = unicodedata.normalize('NFD', KOREAN)


def test_decomposed_hangul_is_composed_where_that_takes_fewer_tokens_and_a_line_says_so(capsys):
    for known in (LEARNED, CharTokenizer(sorted(set(KOREAN))), CharTokenizer(sorted(set(KOREAN + DECOMPOSED)))):
        assert prompts.encode(known, [DECOMPOSED]) == [(KOREAN, known.encode(KOREAN))]
        assert capsys.readouterr().err == (
            'the prompt has decomposed characters (NFD): taken in NFC, which suits this vocabulary better\n')
    assert len(prompts.encode(LEARNED, [DECOMPOSED, KOREAN, DECOMPOSED, ''])) == 4
    assert capsys.readouterr().err.startswith('2 of 4 prompts have decomposed')


def test_a_text_stays_as_it_is_where_the_vocabulary_was_made_of_such(capsys):
    for known in (BPETokenizer(train_bpe([DECOMPOSED] * 9, 320)), CharTokenizer(sorted(set(DECOMPOSED)))):
        assert prompts.encode(known, [DECOMPOSED]) == [(DECOMPOSED, known.encode(DECOMPOSED))]
    assert prompts.encode(LEARNED, [KOREAN])[0][0] == KOREAN and capsys.readouterr().err == ''


def test_characters_that_nothing_has_decomposed_stay_as_they_are(capsys):
    """NFC replaces these by others, which take fewer tokens here."""
    for text in ('\uf9d1\uf967', '\u212b', '\u0958'):
        composed = unicodedata.normalize('NFC', text)
        known = BPETokenizer(train_bpe([composed] * 9, 270))
        assert composed != text and prompts.encode(known, [text]) == [(text, known.encode(text))]
        assert len(known.encode(composed)) < len(known.encode(text))
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('bad, problem', [('\udcb0', 'the byte .xb0, which is not UTF-8'), ('\ud83d', 'surrogate')])
def test_a_prompt_that_is_no_text_is_named_for_every_vocabulary(bad, problem):
    for known in (LEARNED, CharTokenizer('ab')):
        with pytest.raises(ValueError, match=f'^the text .*{problem}'):
            prompts.encode(known, [bad])
        with pytest.raises(ValueError, match=f'^prompt 2 of 3: the text .*{problem}'):
            prompts.encode(known, ['a', bad, 'a'])
