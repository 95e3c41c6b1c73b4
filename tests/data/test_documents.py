"""Documents come out of a file as they went in, from any position; what cannot be read is named with its line."""
import json
import os
from unittest.mock import Mock

import pytest

from corpus import documents, sources

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')

TEXTS = [f'Story {i}: ' + 'a 가 🙂 word '.strip() * (i % 7) + f'\nand a line {i}.' for i in range(300)]


def write(path, texts, key='text', **options):
    """Write documents to a file of the kind that its suffix says; returns it as sources.find does."""
    if path.suffix == '.parquet':
        pq.write_table(pa.table({'id': list(range(len(texts))), key: texts}), path, **{'row_group_size': 70, **options})
    elif path.suffix == '.jsonl':
        path.write_text(''.join(json.dumps({key: text}) + '\n' for text in texts), encoding='utf-8')
    else:
        path.write_bytes('\n<|endoftext|>\n'.join(texts).encode())
    return sources.find(str(path))[0]


def read(file, position=0, **options):
    """All blocks of a file, as ([text], next position)."""
    options = {'to_parts': lambda row: [(documents.text_of(row, 'text'), True)], 'columns': ['text'], **options}
    return [([document.parts[0][0] for document in block], after)
            for block, after, _ in documents.read(file, position, **options)]


def read_text(file, position=0):
    """All blocks of a text file, as documents.read yields them."""
    return list(documents.read(file, position, None, None))


@pytest.fixture
def short(monkeypatch):
    """Documents of more than 1000 bytes come in stretches."""
    monkeypatch.setattr(documents, 'LONGEST', 1000)


@pytest.fixture(params=['a.txt', 'a.jsonl', 'a.parquet'])
def file(request, tmp_path, monkeypatch, short):
    """The same documents in files of each kind, read in many small blocks."""
    monkeypatch.setattr(documents, 'BLOCK', 500)
    monkeypatch.setattr(documents, 'ROWS', 16)
    return write(tmp_path / request.param, TEXTS)


def test_documents_come_back(file):
    assert [text for texts, _ in read(file) for text in texts] == TEXTS


def test_reading_can_go_on_from_every_position(file):
    blocks = read(file)
    assert len(blocks) > 10
    for i, (_, position) in enumerate(blocks):
        assert read(file, position) in (blocks[i + 1:], [([], position)])


def test_a_fraction_of_the_rows_is_always_the_same_rows(file, tmp_path):
    whole = [text for texts, _ in read(file) for text in texts]
    few, some = ([text for texts, _ in read(file, share=share) for text in texts] for share in (0.3, 0.6))
    assert some == [text for text in whole if text in some] and set(few) <= set(some) and len(some) < len(whole)
    if not file['path'].endswith('.parquet'):  # there whole row groups are taken, here five
        assert 60 < len(few) < 120 and 150 < len(some) < 210


def test_the_stretches_of_a_long_text_add_up_to_it(tmp_path, short):
    for text in ('가나다 abc\n' * 300, '가나다 ' * 500, '가🙂' * 900):  # lines, words, one word
        parts = [document for block, *_ in read_text(write(tmp_path / 'a.txt', [text])) for document in block]
        assert ''.join(document.parts[0][0] for document in parts) == text
        assert len(parts) > 3 and len({document.key for document in parts}) == 1
        edges = [0.0, *(document.end for document in parts)]
        assert [document.begin for document in parts] == edges[:-1] == sorted(edges[:-1]) and edges[-1] == 1.0


def test_a_long_document_is_surveyed_once(tmp_path, monkeypatch, short):
    file = write(tmp_path / 'a.txt', ['some words ' * 5000])
    surveys, survey = [], documents.survey
    monkeypatch.setattr(documents, 'survey', lambda *args: surveys.append(args) or survey(*args))
    blocks = read_text(file)
    assert len(blocks) > 50 and len(surveys) == 1
    assert read_text(file, blocks[20][1]) == blocks[21:] and len(surveys) == 1


def test_a_file_that_changes_while_it_is_read_does_not_hang(tmp_path, short):
    file = write(tmp_path / 'a.txt', ['some words ' * 500])
    assert ''.join(text for texts, _ in read({**file, 'bytes': 5000}) for text in texts) == ('some words ' * 500)[:5000]
    with pytest.raises(ValueError, match='has become shorter'):
        read({**file, 'bytes': 6000})


def test_lines_that_are_gone_since_the_files_were_listed_are_missed(tmp_path):
    file = write(tmp_path / 'a.jsonl', TEXTS)
    os.truncate(file['path'], (tmp_path / 'a.jsonl').read_bytes().index(b'{"text": "Story 200'))
    with pytest.raises(ValueError, match='a.jsonl .*has become shorter'):
        read(file)


def test_a_fraction_of_a_file_whose_name_is_not_utf8(tmp_path):
    file = write(tmp_path / os.fsdecode(b'\xff.jsonl'), TEXTS)
    assert 60 < len([text for texts, _ in read(file, share=0.3) for text in texts]) < 120


def test_the_end_of_a_long_document_is_found_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, 'LONGEST', 100)
    for length in range(180, 220):
        file = write(tmp_path / 'a.txt', ['x' * length + '<|endoftext|>' + 'y' * 30])
        *first, last = [document for block, *_ in read_text(file) for document in block]
        assert ''.join(document.parts[0][0] for document in first) == 'x' * length
        assert last.parts[0][0] == 'y' * 30 and last.begin == 0.0


def test_long_documents_among_short_ones(tmp_path, short):
    """Only the newlines around a document are trimmed, and reading can go on from every position."""
    texts = ['one', 'lines\n' * 300, 'two', 'words ' * 400, '가🙂' * 500, 'three', '\n\n' * 800 + 'blanks']
    for last in ([], ['']):  # with '', the file ends with <|endoftext|>
        file = write(tmp_path / 'a.txt', texts + last)
        blocks, found = read_text(file), []
        for document in (document for block, *_ in blocks for document in block):
            if document.begin == 0.0:
                found.append('')
            found[-1] += document.parts[0][0]
        assert [text.strip('\n') for text in found if text] == [text.strip('\n') for text in texts]
        for i, (_, position, _) in enumerate(blocks):
            assert read_text(file, position) == blocks[i + 1:]


def test_line_ends_and_a_byte_order_mark(tmp_path):
    assert read(write(tmp_path / 'a.txt', ['\ufeffone\r\ntwo\r\n']))[0][0] == ['one\r\ntwo\r\n']
    assert read(write(tmp_path / 'b.txt', ['one\r\n<|endoftext|>\r\ntwo\r\n']))[0][0] == ['one', 'two']


@pytest.mark.parametrize('name, content, complaint', [
    ('a.txt', b'fine\nfine\nuntil \xff here\n', 'line 3: not UTF-8'),
    ('a.md', b'one<|endoftext|>\ntwo\n<|endoftext|>\nthr\xe9e', 'line 4: not UTF-8'),
    ('a.jsonl', b'{"text": "fine"}\n\n{"text": "caf\xe9"}\n', 'line 3: not UTF-8'),
    ('a.jsonl', b'{"text": "fine"}\n{"text": "cut off', 'line 2: not JSON'),
    ('a.jsonl', b'["text"]\n', 'line 1: this is JSON, but not an object'),
    ('a.jsonl', b'{"content": "fine", "id": 3}\n', "line 1: no 'text' here, but content, id"),
    ('a.jsonl', b'{"text": null}\n', "line 1: 'text' is None, not text"),
    ('a.jsonl', b'{"text": "half a pair \\ud800"}\n', "line 1: 'utf-8' codec can't encode"),
    ('a.parquet', b'PAR1 not', 'a.parquet: '),
])
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(sources.find(str(tmp_path / name))[0])
    assert str(tmp_path / name) in str(error.value) and complaint in str(error.value)


def test_a_parquet_file_that_is_damaged_within_is_named(tmp_path):
    file = write(tmp_path / 'a.parquet', [text * 9 for text in TEXTS])
    content = bytearray((tmp_path / 'a.parquet').read_bytes())
    for i in range(200, len(content) - 3000, 7):
        content[i] ^= 255
    (tmp_path / 'a.parquet').write_bytes(content)
    with pytest.raises(ValueError, match='a.parquet'):
        read(file)


def test_json_that_no_parser_can_take_is_a_bad_row(tmp_path):
    (tmp_path / 'A.JSONL').write_text('\ufeff{"text": "one"}\n' + '[' * 200_000 + '\n{"text": "two"}\n')
    reported = []
    assert read(sources.find(str(tmp_path))[0], bad_row=reported.append)[0][0] == ['one', 'two']
    assert len(reported) == 1 and 'A.JSONL, line 2' in reported[0]()


def test_a_bad_row_can_be_skipped_and_is_reported(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "one"}\nnonsense\n{"text": 2}\n{"text": "three"}\n')
    reported = []
    assert read(sources.find(str(tmp_path / 'a.jsonl'))[0], bad_row=reported.append)[0][0] == ['one', 'three']
    assert len(reported) == 2 and 'line 2: not JSON' in reported[0]() and 'line 3' in reported[1]()


def test_a_row_of_parquet_without_text_is_named(tmp_path):
    file = write(tmp_path / 'a.parquet', [*TEXTS[:99], None])
    with pytest.raises(ValueError, match="a.parquet, row 99: 'text' is None"):
        read(file)
    with pytest.raises(ValueError, match="a.parquet: no 'content' here, but id, text; name"):
        read(file, columns=['content'])


def test_after_a_network_failure_reading_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """The connection breaks four times within a file, at most twice in a row."""
    file, opened = write(tmp_path / 'a.parquet', TEXTS), []

    def flaky(path):
        opened.append(path)
        if len(opened) in (2, 4):
            raise ConnectionResetError('gone')
        return open(file['path'], 'rb')

    def broken(stream, file, position, columns, share):
        for i, block in enumerate(steady(stream, file, position, columns, share)):
            if len(opened) in (1, 3) and i == 2:
                raise TimeoutError('too slow')
            yield block
    steady = documents.read_rows
    monkeypatch.setattr('common.download.WAITS', (0, 0))
    monkeypatch.setattr(sources, 'open_file', flaky)
    monkeypatch.setattr(documents, 'read_rows', broken)
    monkeypatch.setattr(documents, 'ROWS', 50)
    blocks = read({**file, 'path': 'hf://datasets/me/mine@main/a.parquet'})
    assert [text for texts, _ in blocks for text in texts] == TEXTS
    assert len(opened) == 5 and capsys.readouterr().out.count('TimeoutError: too slow; trying again') == 2


def test_a_network_that_stays_down_is_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr('common.download.WAITS', (0, 0))
    monkeypatch.setattr(sources, 'open_file', Mock(side_effect=ConnectionResetError('gone')))
    with pytest.raises(ValueError, match='cannot read hf://x/a.parquet'):
        read({'path': 'hf://x/a.parquet', 'bytes': 9})
