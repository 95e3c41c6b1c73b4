"""Text that is not plain UTF-8: recognised or named with the command that reads it, and the bins are those of UTF-8."""
import json
import shlex
import unicodedata

import numpy as np
import pytest

from common import dataset
from conftest import slow
from corpus import charsets, documents, encoding, pipeline, plan, shards, sources
from test_documents import read, short, write  # noqa: a fixture
from test_pipeline import INSTRUCTIONS, STORIES, files_of, needs_gpt2, prepare, texts_of  # noqa: a fixture

KOREAN = '옛날 옛적에 호랑이가 살았는데 떡을 좋아했습니다. 그래서 할머니의 집으로 갔어요.\n'
JAPANESE = '昔々あるところに、おじいさんとおばあさんが住んでいました。\n'
CHINESE = '从前有一个人，他不知道这是什么地方，于是他来到了中国。\n'
TAIWANESE = '從前有一個人，他不知道這是什麼地方，於是他來到了中國。\n'
RUSSIAN = 'Жили-были старик со старухой у самого синего моря.\n'
FRENCH = 'Il était une fois une fillette très jolie, que sa mère aimait à la folie; déjà le père-noël.\n'
TEXTS = {'cp949': KOREAN, 'utf-16-le': KOREAN, 'utf-16-be': 'plain English\n', 'shift_jis': JAPANESE,
         'euc_jp': JAPANESE, 'gb18030': CHINESE, 'big5': TAIWANESE, 'cp1251': RUSSIAN, 'koi8_r': RUSSIAN,
         'cp1252': FRENCH, 'utf-32-le': KOREAN}


def bins(folder):
    return [(folder / name).read_bytes() for name in ('train.bin', 'val.bin')]


@pytest.fixture
def same(prepare, tmp_path):
    """same(text, '--input=b.txt', ...): whether the dataset that this makes is that of `text` as a UTF-8 file."""
    def compare(text, *args, name='utf8.txt'):
        (tmp_path / name).write_bytes(text.encode())
        made, expected = (prepare(*each, out=out) for each, out in ((args, 'made'), ([f'--input={name}'], 'expected')))
        assert len(made) == len(expected) == 3, (made, expected)
        return bins(tmp_path / 'made') == bins(tmp_path / 'expected') and made[2]['chars'] == expected[2]['chars']
    return compare


# recognised and named

@pytest.mark.parametrize('name', [name if name in ('cp949', 'utf-16-le', 'gb18030') else slow(name) for name in TEXTS])
@pytest.mark.parametrize('kind', ['txt', 'jsonl'])
def test_the_command_that_is_printed_reads_the_file_as_it_was_meant(prepare, same, tmp_path, name, kind):
    text = TEXTS[name] * 30
    if kind == 'jsonl':
        text = ''.join(json.dumps({'text': f'{i} {TEXTS[name]}'}, ensure_ascii=False) + '\n' for i in range(30))
    path = tmp_path / f'my book.{kind}'
    path.write_bytes(text.encode(name))
    code, said = prepare(f'--input={path.name}', out='made')
    words = TEXTS[name][:6]
    assert code == 2 and 'line 1: not UTF-8' in said and words in said and 'iconv' not in said, said
    command = next(line for line in said.splitlines() if line.startswith('python '))
    assert f'--encoding={name}' in command and not (tmp_path / 'made' / 'train.bin').exists()
    args = [word for word in shlex.split(command)[2:] if not word.startswith('--out')]
    assert same(text, *args, name=f'utf8.{kind}')
    assert not list(tmp_path.glob('*/unfinished*'))


@pytest.mark.parametrize('name', ['utf-16', 'utf-16-be', 'utf-32'])
@pytest.mark.parametrize('kind', ['txt', 'jsonl'])
def test_a_byte_order_mark_says_the_encoding_and_a_line_says_so(same, tmp_path, capsys, name, kind):
    text = ''.join(json.dumps({'text': f'{i} {KOREAN}'}, ensure_ascii=False) + '\n' for i in range(30))
    (tmp_path / f'b.{kind}').write_bytes(('\ufeff' * name.endswith('be') + text).encode(name))
    assert same(text, f'--input=b.{kind}', name=f'utf8.{kind}')
    assert f'read as {name[:6]}, by its byte order mark: ' in capsys.readouterr().out


def test_many_zero_bytes_are_utf16_and_a_few_are_text(prepare, same, tmp_path):
    (tmp_path / 'wide.txt').write_bytes('plain English text\n'.encode('utf-16-le') * 50)
    code, said = prepare('--input=wide.txt')
    assert code == 2 and 'many bytes are 0, as in UTF-16-LE' in said and "'plain English text'" in said
    (tmp_path / 'wide.txt').write_bytes(b'\0a' * 50)
    assert 'as in UTF-16-BE' in prepare('--input=wide.txt')[1]
    few, zeros = 'a\0b and more text\n' * 50, 'a\n' + '\0' * 500
    for text in (few, zeros):
        (tmp_path / 'b.txt').write_bytes(text.encode())
        assert same(text, '--input=b.txt')


def test_a_damaged_place_in_utf8_is_not_taken_for_another_encoding(prepare, tmp_path):
    (tmp_path / 'b.txt').write_bytes(KOREAN.encode() * 20 + b'\xb4\n' + KOREAN.encode() * 20)
    code, said = prepare('--input=b.txt')
    assert code == 2 and 'b.txt, line 21: not UTF-8' in said and 'so this place is damaged' in said
    assert '--encoding' not in said
    (tmp_path / 'c.txt').write_bytes(b'\xef\xbb\xbfmarked\n' + KOREAN.encode('cp949'))
    code, said = prepare('--input=c.txt')
    assert code == 2 and 'so this place is damaged' in said and '--encoding' not in said
    (tmp_path / 'c.txt').write_bytes(bytes(range(256)) * 20)
    code, said = prepare('--input=c.txt')
    assert code == 2 and 'does not look like text' in said
    (tmp_path / 'c.txt').write_bytes(b'plain\n' * 20_000 + KOREAN.encode('cp949'))
    code, said = prepare('--input=c.txt')
    assert code == 2 and 'line 20001' in said and '--encoding=cp949' in said, 'where it is, and not at the beginning'


def test_a_folder_of_utf8_and_another_encoding_is_read_as_what_each_file_is(prepare, tmp_path, capsys):
    (tmp_path / 'in').mkdir()
    for name, content in (('a.txt', KOREAN.encode()), ('b.txt', KOREAN.replace('떡', '꿀').encode('cp949')),
                          ('c.txt', KOREAN.replace('떡', '밥').encode('utf-16')), ('d.txt', b'ascii')):
        (tmp_path / 'in' / name).write_bytes(content)
    write(tmp_path / 'in' / 'e.parquet', [KOREAN.replace('떡', '콩')])
    train, val, meta = prepare('--input=in', '--encoding=ms949')
    assert {*'떡꿀밥콩'} < {*meta['chars']} and meta['encoding'] == 'cp949' and meta['documents']['train'] == 5
    said = capsys.readouterr().out
    assert f'read as utf-8, which is what it is in: {tmp_path}/in/a.txt\n' in said
    assert f'read as cp949: {tmp_path}/in/b.txt, {tmp_path}/in/d.txt\n' in said


def test_what_is_not_in_the_encoding_is_named_by_its_line_and_can_be_skipped(prepare, tmp_path):
    lines = [json.dumps({'text': f'{i} {KOREAN}'}, ensure_ascii=False).encode('cp949') for i in range(200)]
    lines[150] = lines[150][:-4] + b'\xff"}'
    (tmp_path / 'b.jsonl').write_bytes(b'\n'.join(lines))
    code, said = prepare('--input=b.jsonl', '--encoding=cp949')
    assert code == 2 and 'b.jsonl, line 151: not cp949' in said and '--skip_bad' in said
    train, val, meta = prepare('--input=b.jsonl', '--encoding=cp949', '--skip_bad')
    assert sum(meta['documents'].values()) == 199 and meta['left_out']['unusable'] == 1
    assert len(prepare('--input=b.jsonl', '--skip_bad', '--val_input=a.jsonl')) == 2, 'of 200 all are left out'


@pytest.mark.parametrize('name', ['utf17', 'kor', '', 'base64', 'idna', 'a\0b', 'windows-94', 'cp', 'windows-9490'])
def test_an_unknown_encoding_gets_the_usual_ones_and_no_guess(prepare, name):
    code, said = prepare('--input=a.jsonl', f'--encoding={name}')
    assert code == 2 and 'is no encoding of text that Python knows; some are cp949 (Korean)' in said
    assert 'did you mean' not in said and 'Traceback' not in said


def test_code_pages_have_their_number_by_any_name():
    for name in ('windows-949', 'x-windows-949', 'MS949', 'ms-949', 'cp-949', 'uhc', '949', 'Windows_949'):
        assert charsets.canonical(name) == 'cp949'
    assert [charsets.canonical(name) for name in ('ks_c_5601-1987', 'windows-1252', 'IBM437', 'windows-874')] == [
        'euc_kr', 'cp1252', 'cp437', 'cp874']
    assert charsets.canonical('windows-65001') is None, 'UTF-8'


@pytest.mark.parametrize('name', ['utf-16-le', slow('utf-32'), slow('cp037')])
def test_ascii_is_utf8_where_the_encoding_would_make_something_else_of_it(prepare, tmp_path, capsys, name):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'a.txt').write_bytes(b'plain text' * 9)
    (tmp_path / 'in' / 'b.txt').write_bytes(('other' if name == 'cp037' else KOREAN).encode(name))
    (tmp_path / 'in' / 'c.txt').write_bytes(b'')
    _, _, meta = prepare('--input=in', f'--encoding={name}')
    assert set(meta['chars']) <= {*'plain text other', *KOREAN}
    assert f'read as utf-8, which is what it is in: {tmp_path}/in/a.txt' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['iso2022_kr', slow('hz'), slow('utf-7')])
def test_encodings_of_ascii_bytes_alone_are_read_when_they_are_named(same, tmp_path, name):
    text = (CHINESE if name == 'hz' else KOREAN) * 20
    (tmp_path / 'b.txt').write_bytes(text.encode(name))
    assert same(text, '--input=b.txt', f'--encoding={name}')


@pytest.mark.parametrize('name, text', [('iso2022_kr', KOREAN), slow('iso2022_jp', JAPANESE), slow('hz', CHINESE)])
def test_ascii_bytes_that_are_another_encoding_are_not_taken_for_text(prepare, tmp_path, name, text):
    (tmp_path / 'b.txt').write_bytes((text * 20).encode(name))
    code, said = prepare('--input=b.txt')
    assert code == 2 and f'b.txt is not plain text but {name}' in said and f'--encoding={name}\n' in said
    assert 'read' in said and len(prepare('--input=b.txt', '--encoding=ascii')) == 3, 'as it is'


@pytest.mark.parametrize('name', ['utf-16-le', 'utf-16-be', slow('utf-32-le')])
def test_utf16_without_a_mark_is_read_in_the_order_that_makes_a_text(prepare, same, tmp_path, capsys, name):
    (tmp_path / 'b.txt').write_bytes((KOREAN * 20).encode(name))
    assert same(KOREAN * 20, '--input=b.txt', f'--encoding={name[:6]}')
    assert f'read as {name}: ' in capsys.readouterr().out
    (tmp_path / 'b.txt').write_bytes(KOREAN.encode('cp949'))
    code, said = prepare('--input=b.txt', f'--encoding={name[:6]}')
    assert code == 2 and 'b.txt has no byte order mark' in said
    assert f'name --encoding={name[:6]}-le or {name[:6]}-be\n' in said


def test_of_a_few_letters_the_readings_are_shown_and_none_is_chosen(prepare, tmp_path):
    (tmp_path / 'b.txt').write_bytes('안녕하세요'.encode('cp949') + b' plain' * 50)
    code, said = prepare('--input=b.txt')
    assert code == 2 and "cp949      '안녕하세요 plain" in said and said.count('--encoding=') == 1
    assert '--encoding=NAME\n' in said
    (tmp_path / 'b.txt').write_bytes('“It’s fine,” he said.\n'.encode('cp1252') * 200)
    assert '--encoding=cp1252\n' in prepare('--input=b.txt')[1]


def test_a_damaged_place_does_not_hide_the_encoding_of_the_rest(prepare, tmp_path):
    lines = KOREAN.encode('cp949') * 50
    (tmp_path / 'b.txt').write_bytes(lines + b'\xff\xff\n' + lines)
    code, said = prepare('--input=b.txt')
    assert code == 2 and '--encoding=cp949\n' in said and "'옛날 옛적에" in said
    code, said = prepare('--input=b.txt', '--encoding=cp949')
    assert code == 2 and 'line 51: not cp949' in said and 'The rest is cp949, so this place is damaged' in said


def test_utf8_by_any_name_is_the_dataset_that_needs_no_encoding(prepare, tmp_path, capsys):
    for args in ([], ['--encoding=utf8'], ['--encoding=UTF-8-SIG']):
        made_from = prepare('--input=a.jsonl', *args)[2]['made_from']
    assert capsys.readouterr().out.count('has this dataset already') == 2
    job = plan.Job(train=['x'], val=[], prompt=None, tokenizer='char', vocab_size=0, text_key='text', fraction=1.0,
                   val_fraction=0.1, cut=0.9)
    assert list(job.identity()) == ['format', 'train', 'val', 'prompt', 'tokenizer', 'vocab_size', 'text_key',
                                    'fraction', 'val_fraction', 'cut'], 'what a dataset is known by has not changed'
    assert prepare('--input=a.jsonl', '--normalize=NFC')[2]['made_from'] != made_from


class Killed(BaseException):
    pass


@pytest.mark.parametrize('after', [0, 2])
def test_killed_while_another_encoding_is_read_it_ends_with_the_same_bytes(prepare, tmp_path, monkeypatch, after):
    for module, name, size in ((documents, 'BLOCK', 2000), (encoding, 'SHARD', 4000), (charsets, 'BLOCK', 999)):
        monkeypatch.setattr(module, name, size)
    for i, name in enumerate(('cp949', 'utf-16')):
        rows = [json.dumps({'text': f'{i} {j} {KOREAN}'}, ensure_ascii=False) + '\n' for j in range(150)]
        (tmp_path / f'{i}.jsonl').write_bytes(''.join(rows).encode(name))
    job = ['--input', '0.jsonl', '1.jsonl', '--encoding=cp949', '--normalize=NFC']
    assert sum(prepare(*job, out='whole')[2]['documents'].values()) == 300
    write_manifest = shards.Shards.write_manifest

    def kill(self):
        write_manifest(self)
        if self.manifest['shards'] == after:
            raise Killed
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shards.Shards, 'write_manifest', kill)
        prepare(*job)
    work, = (tmp_path / 'out').glob('unfinished-*')
    assert (work / 'input-1.utf8').exists()
    monkeypatch.setattr(charsets, 'write_copy', None)  # nothing is converted again
    prepare(*job)
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole') and not work.exists()


# marks, normal forms, line ends

def test_byte_order_marks_at_the_beginning_of_documents_and_lines_are_no_text(prepare, tmp_path, short):
    mark = '\ufeff'
    for text, found in ((f'{mark}one<|endoftext|>\n{mark}two', ['one', 'two']),
                        (f'{mark}\r\none\r\n<|endoftext|>{mark}\r\ntwo', ['one', 'two']),
                        (f'{mark}one\n{mark}two', ['one\ntwo']), (f'{mark}{mark}one{mark}', [f'one{mark}'])):
        assert read(write(tmp_path / 'b.txt', [text]))[0][0] == found
    lines = [f'{mark}line {i} and more\n' for i in range(200)]  # stretches are cut after a line
    assert ''.join(text for texts, _ in read(write(tmp_path / 'b.txt', [''.join(lines)])) for text in texts) == (
        ''.join(lines).replace(mark, ''))


def test_decomposed_text_is_named_and_composed_on_demand(prepare, same, tmp_path, capsys):
    text = KOREAN * 40
    (tmp_path / 'nfd.txt').write_text(unicodedata.normalize('NFD', text))
    train, val, meta = prepare('--input=nfd.txt')
    said = capsys.readouterr().out
    extra = len(unicodedata.normalize('NFD', text)) - len(text)
    assert f'{extra:,} characters of the text only complete the one before them, as in 옛 (U+110B U+1168 U+11BA)' in said
    assert '--normalize=NFC composes them' in said and 'normalize' not in meta
    assert same(text, '--input=nfd.txt', '--normalize=nfc')
    assert dataset.read_meta(str(tmp_path / 'made'))['normalize'] == 'NFC'
    assert 'only complete' not in capsys.readouterr().out
    code, said = prepare('--input=nfd.txt', '--normalize=NFG')
    assert code == 2 and '--normalize=NFC' in said


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
def test_rows_and_instructions_are_composed_too(prepare, tmp_path, kind):
    write(tmp_path / f'b.{kind}', [unicodedata.normalize('NFD', f'{i} café') for i in range(200)])
    _, _, meta = prepare(f'--input=b.{kind}', '--normalize=NFC')
    assert 'é' in meta['chars'] and '\u0301' not in meta['chars']
    row = {'q': '가'.encode().decode(), 'a': unicodedata.normalize('NFD', '나다')}
    (tmp_path / 'c.jsonl').write_text(''.join(json.dumps({**row, 'q': str(i)}) + '\n' for i in range(40)))
    _, _, meta = prepare('--input=c.jsonl', '--normalize=NFC', **INSTRUCTIONS)
    assert '나' in meta['chars']


def test_a_long_text_is_not_cut_within_a_character_that_is_composed(tmp_path, short):
    for unit in ('한', '각', 'é', 'ệ', '\u0958'):
        text = unit * 2000  # without a line end or a space
        file = write(tmp_path / 'b.txt', [unicodedata.normalize('NFD', text)])
        stretches = [piece for block, _ in read(file, normalize='NFC') for piece in block]
        assert len(stretches) > 3 and ''.join(stretches) == unicodedata.normalize('NFC', text)


def test_windows_line_ends_stay_and_are_named(prepare, tmp_path, capsys):
    (tmp_path / 'b.txt').write_bytes(b'one line\r\nand another\r\n' * 50)
    train, val, meta = prepare('--input=b.txt')
    said = capsys.readouterr().out
    assert '\r' in meta['chars'] and "100 lines end as on Windows, and their \\r is a character" in said
    assert "cat FILE | tr -d '\\r' > NEW_FILE" in said
    (tmp_path / 'c.txt').write_bytes('one line\r\nand another\r\n'.encode('utf-16') * 50)
    prepare('--input=c.txt', out='c')
    assert "iconv -f utf-16 -t utf-8 FILE | tr -d '\\r' > NEW_FILE" in capsys.readouterr().out
    prepare('--input=b.txt', '--vocab_size=300')
    assert 'as on Windows' not in capsys.readouterr().out


# what counts

def scored(folder):
    return dataset.read_meta(str(folder))['scored']


@pytest.mark.parametrize('gpt2', [False, pytest.param(True, marks=needs_gpt2)])
def test_the_bytes_that_count_are_the_same_in_every_vocabulary(prepare, tmp_path, gpt2):
    texts = [f'{story} {KOREAN}' for story in STORIES]
    write(tmp_path / 'b.jsonl', texts)
    val = sum(len(text.encode()) for text in texts if documents.hash_of(text) < 0.1)
    for out, args in [('gpt2', ['--tokenizer=gpt2'])] if gpt2 else [('char', []), ('bpe', ['--vocab_size=300'])]:
        _, ids, meta = prepare('--input=b.jsonl', *args, out=out)
        assert scored(tmp_path / out)['val'] == {'tokens': len(ids), 'bytes': val}
        assert scored(tmp_path / out)['train']['bytes'] == sum(map(len, map(str.encode, texts))) - val
        assert dataset.bytes_per_token(meta, 'val') == val / len(ids)


def test_of_instructions_the_bytes_of_answers_count(prepare, tmp_path, capsys):
    (tmp_path / 'b.jsonl').write_text(''.join(json.dumps({'q': f'{i}?', 'a': '네' * i}) + '\n' for i in range(60)))
    for out, args in (('char', []), ('bpe', ['--vocab_size=270'])):
        prepare('--input=b.jsonl', '--val_fraction=0.3', *args, out=out, **INSTRUCTIONS)
        for split, counted in scored(tmp_path / out).items():
            assert counted['tokens'] == dataset.open_mask(str(tmp_path / out), split).sum()
    assert sum(counted['bytes'] for counted in scored(tmp_path / 'char').values()) == 3 * sum(range(60))
    assert [each['bytes'] for each in scored(tmp_path / 'bpe').values()] == [
        each['bytes'] for each in scored(tmp_path / 'char').values()]
    assert 'a token of val is ' in capsys.readouterr().out


def test_work_that_another_version_began_is_begun_anew_and_a_line_says_so(prepare, tmp_path, monkeypatch, capsys):
    for module, name, size in ((documents, 'BLOCK', 2000), (encoding, 'SHARD', 4000)):
        monkeypatch.setattr(module, name, size)
    prepare('--input=a.jsonl', out='whole')
    write_manifest = shards.Shards.write_manifest

    def write_and_stop(self):
        self.manifest.pop('rules', None)
        write_manifest(self)
        if self.manifest['shards'] == 2:
            raise Killed
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shards.Shards, 'write_manifest', write_and_stop)
        prepare('--input=a.jsonl')
    capsys.readouterr()
    assert 'scored' in prepare('--input=a.jsonl')[2]
    assert 'is unfinished work of another version, and begins anew\n' in capsys.readouterr().out
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole')


@needs_gpt2
def test_a_text_that_gpt2_cuts_into_small_pieces_gets_a_hint(prepare, tmp_path, capsys):
    write(tmp_path / 'b.jsonl', [f'{i} {KOREAN}' for i in range(200)])
    prepare('--input=b.jsonl', '--tokenizer=gpt2')
    assert "GPT-2's vocabulary is made for English" in capsys.readouterr().out
    prepare('--input=a.jsonl', '--tokenizer=gpt2', out='english')
    assert "made for English" not in capsys.readouterr().out


# parquet

@pytest.mark.parametrize('kind', ['string', 'large_string', 'string_view'])
def test_a_value_of_parquet_that_is_not_utf8_is_named_by_its_row_and_can_be_skipped(prepare, tmp_path, kind):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    values = [f'{i} text'.encode() for i in range(3000)]
    values[2345] = b'caf\xe9'
    column = pa.array(values, pa.binary()).cast(pa.large_binary() if kind == 'large_string' else pa.binary())
    column = column.view(pa.large_string() if kind == 'large_string' else pa.string())
    if kind == 'string_view':
        if not hasattr(pa, 'string_view'):
            pytest.skip('this pyarrow has none')
        column = pa.chunked_array([column]).cast(pa.binary()).cast(pa.binary_view()).chunk(0).view(pa.string_view())
    pq.write_table(pa.table({'text': column}), tmp_path / 'b.parquet')
    code, said = prepare('--input=b.parquet')
    assert code == 2 and 'b.parquet, row 2345: not UTF-8' in said and '--skip_bad' in said and '--encoding' not in said
    _, _, meta = prepare('--input=b.parquet', '--skip_bad')
    assert sum(meta['documents'].values()) == 2999 and meta['left_out']['unusable'] == 1
