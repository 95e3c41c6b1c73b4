"""Corpora: the counts to expect, downloads that cannot go wrong quietly, and errors that say what to do."""
import hashlib
import http.client
import http.server
import json
import os
import shutil
import threading

import numpy as np
import pytest

import corpus
from conftest import ROOT, python

SHAKESPEARE = os.path.join(ROOT, '..', 'shared', 'data', 'tinyshakespeare.txt')


@pytest.fixture
def house(tmp_path):
    """A copy of the parts of the project that prepare scripts use, so that they write into it and not into ours."""
    for part in ('data', 'common'):
        shutil.copytree(os.path.join(ROOT, part), tmp_path / part,
                        ignore=shutil.ignore_patterns('*.bin', 'meta.json', 'input.txt', '__pycache__'))
    return tmp_path


def ids_and_meta(folder):
    meta = json.loads((folder / 'meta.json').read_text())
    return [np.fromfile(folder / f'{split}.bin', dtype=f'<{np.dtype(meta["dtype"]).str[1:]}') for split in
            ('train', 'val')], meta


def test_a_character_corpus_comes_back_from_its_ids(house):
    text = 'To be, or not to be:\n가나다 🙂\n' * 50
    (house / 'mine.txt').write_text(text, encoding='utf-8')
    done = python('data/shakespeare_char/prepare.py', '--input=mine.txt', cwd=house)
    assert done.returncode == 0, done.stderr
    (train, val), meta = ids_and_meta(house / 'data' / 'shakespeare_char')
    assert ''.join(meta['chars'][i] for i in np.concatenate((train, val))) == text
    assert meta['vocab_size'] == len(set(text)) and len(train) == int(0.9 * len(text)) == meta['train_tokens']
    content = (house / 'data' / 'shakespeare_char' / 'val.bin').read_bytes()
    assert meta['sha256']['val.bin'] == hashlib.sha256(content).hexdigest()
    assert f'{len(text):,} characters' in done.stdout and f'train has {len(train):,} tokens' in done.stdout


@pytest.mark.skipif(not os.path.exists(SHAKESPEARE), reason='needs a copy of tiny Shakespeare')
@pytest.mark.parametrize('name, counts', [('shakespeare_char', (1003854, 111540)), ('shakespeare', (301966, 36059))])
def test_tiny_shakespeare_gives_the_known_counts(house, tmp_path, name, counts):
    if name == 'shakespeare' and not os.environ.get('TIKTOKEN_CACHE_DIR'):
        pytest.skip("needs GPT-2's vocabulary files: set TIKTOKEN_CACHE_DIR to a folder that has them")
    done = python(house / 'data' / name / 'prepare.py', f'--input={os.path.abspath(SHAKESPEARE)}', cwd='/')
    assert done.returncode == 0 and 'another one' not in done.stdout, done.stderr
    (train, val), meta = ids_and_meta(house / 'data' / name)
    assert (len(train), len(val)) == counts and meta['vocab_size'] == (65 if name == 'shakespeare_char' else 50257)


def test_pythons_documentation_is_a_corpus_that_needs_no_download(house):
    done = python('data/pydoc_char/prepare.py', cwd=house)
    assert done.returncode == 0, done.stderr
    (train, val), meta = ids_and_meta(house / 'data' / 'pydoc_char')
    assert len(train) > 1_000_000 and 60 < meta['vocab_size'] < 200
    text = ''.join(meta['chars'][i] for i in train)
    assert 'Return' in text and min(text.count(char) for char in meta['chars']) > 20


@pytest.fixture
def server(tmp_path):
    """A web server on loopback with one file, 'text'."""
    (tmp_path / 'web').mkdir()
    (tmp_path / 'web' / 'text').write_text('hello\n')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / 'web'))

        def log_message(self, *args):
            pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_a_download_is_kept_only_if_it_is_the_right_file(server, tmp_path, capsys):
    folder, right = str(tmp_path), hashlib.sha256(b'hello\n').hexdigest()
    for url, sha256, complaint in ((f'{server}/none', right, 'HTTP Error 404'), (f'{server}/text', '0' * 64, right)):
        with pytest.raises(SystemExit) as stopped:
            corpus.fetch(folder, url, sha256)
        assert stopped.value.code == 2 and complaint in capsys.readouterr().err
        assert os.listdir(folder) == ['web']
    assert corpus.fetch(folder, f'{server}/text', right) == 'hello\n'
    assert (tmp_path / 'input.txt').read_text() == 'hello\n'
    assert corpus.fetch(folder, 'http://127.0.0.1:1/gone', right) == 'hello\n', 'downloaded once'


def test_without_a_network_the_message_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        corpus.fetch(str(tmp_path), 'http://127.0.0.1:1/text', '')
    said = capsys.readouterr().err
    assert str(tmp_path / 'input.txt') in said and '--input=FILE' in said and 'config/quickstart.py' in said


@pytest.mark.parametrize('content, complaint', [(b'fine until \xff here', 'byte 11'), (None, 'No such file')])
def test_a_file_that_is_no_text_is_named(tmp_path, capsys, content, complaint):
    if content is not None:
        (tmp_path / 'mine.txt').write_bytes(content)
    with pytest.raises(SystemExit):
        corpus.fetch(str(tmp_path), '', '', given=str(tmp_path / 'mine.txt'))
    said = capsys.readouterr().err
    assert 'mine.txt' in said and complaint in said


def test_a_download_that_breaks_off_is_a_message(tmp_path, capsys, monkeypatch):
    class Broken:
        __enter__ = lambda self: self
        __exit__ = lambda self, *args: None

        def read(self):
            raise http.client.IncompleteRead(b'hel')
    monkeypatch.setattr('urllib.request.urlopen', lambda *args, **kwargs: Broken())
    with pytest.raises(SystemExit):
        corpus.fetch(str(tmp_path), 'http://127.0.0.1/text', '')
    assert 'IncompleteRead' in capsys.readouterr().err and os.listdir(tmp_path) == []


def test_too_little_text_is_refused_and_nothing_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit):
        corpus.write_char(str(tmp_path), '', source='tests')
    assert 'too little text' in capsys.readouterr().err and os.listdir(tmp_path) == []


def test_a_vocabulary_beyond_uint16_takes_uint32(tmp_path):
    corpus.write(str(tmp_path), [0, 70000], [1], {'tokenizer': 'char', 'vocab_size': 70001})
    (train, val), meta = ids_and_meta(tmp_path)
    assert meta['dtype'] == 'uint32' and train.tolist() == [0, 70000]
