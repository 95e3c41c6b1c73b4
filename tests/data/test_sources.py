"""Files are found on the disk and on Hugging Face, and a download is kept only if it is the right file."""
import contextlib
import functools
import hashlib
import http.client
import http.server
import json
import os
import threading
from unittest.mock import MagicMock

import pytest

from corpus import sources
from test_pipeline import STORIES, ids_and_meta, run_script, texts_of, write_shards


class Quiet(http.server.SimpleHTTPRequestHandler):
    log_message = lambda *args: None


@contextlib.contextmanager
def serving(handler):
    """A web server on loopback; yields its address."""
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_files_folders_and_globs(tmp_path):
    (tmp_path / 'sub').mkdir()
    for name in ('b.txt', 'a.md', 'sub/c.jsonl', 'd.csv'):
        (tmp_path / name).write_text('{}')

    def names(pattern):
        return [file['path'].removeprefix(f'{tmp_path}/') for file in sources.find(str(tmp_path / pattern))]
    assert names('') == ['a.md', 'b.txt', 'sub/c.jsonl'] and names('b.txt') == ['b.txt']
    assert names('*.txt') == ['b.txt'] and names('**/*.jsonl') == ['sub/c.jsonl']
    for pattern, complaint in (('e.txt', 'there is no '), ('d.csv', 'no file of .txt, '), ('*.html', 'there is no ')):
        with pytest.raises(ValueError, match=complaint):
            names(pattern)


def test_what_cannot_be_read_now_is_not_left_out(tmp_path, monkeypatch):
    (tmp_path / 'sub').mkdir()
    for name in ('a.txt', 'b.txt', 'sub/c.txt'):
        (tmp_path / name).write_text('text')

    def failing(function, what):
        def fails(path, *args, **options):
            if str(path) == str(tmp_path / what):
                raise PermissionError(13, 'Permission denied', path)
            return function(path, *args, **options)
        return fails
    for function, what, pattern in (('scandir', 'sub', ''), ('stat', 'b.txt', '*.txt'), ('stat', 'sub', '*')):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, failing(getattr(os, function), what))
            with pytest.raises(PermissionError):
                sources.find(str(tmp_path / pattern))
    os.mkfifo(tmp_path / 'd.txt')  # would be waited for
    (tmp_path / 'e.txt').symlink_to('nowhere')
    assert [os.path.basename(file['path']) for file in sources.find(str(tmp_path / '*'))] == ['a.txt', 'b.txt', 'c.txt']


# Hugging Face

@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Hugging Face on loopback. Its only dataset is me/mine, with the files in the folder that this returns."""
    pytest.importorskip('huggingface_hub')
    folder = tmp_path / 'hub'
    folder.mkdir()

    class Hub(Quiet):
        protocol_version = 'HTTP/1.1'

        def do_GET(self):
            place, headers = self.path.partition('?')[0], {}
            listing = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
            status, content = 404, b'{"error": "Repository not found"}'
            if place.startswith('/api/datasets/me/mine/tree/'):
                status, content = 200, [{'type': 'file', 'path': name, 'size': size, 'oid': 'b'}
                                        for name, size in listing]
            elif place.startswith('/api/datasets/me/mine'):
                status, content = 200, {'id': 'me/mine', 'sha': 'a' * 40, 'siblings': [
                    {'rfilename': name, 'size': size, 'blobId': 'b'} for name, size in listing]}
            elif place.startswith(f'/datasets/me/mine/resolve/{"a" * 40}/'):
                whole = (folder / os.path.basename(place)).read_bytes()
                start, end = map(int, self.headers['Range'].removeprefix('bytes=').split('-'))
                status, content = 206, whole[start:end + 1]
                headers = {'Content-Range': f'bytes {start}-{end}/{len(whole)}'}
            else:
                headers = {'X-Error-Code': 'RepoNotFound'}
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, 'Content-Length': len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)
    with serving(Hub) as address:
        for name, value in (('ENDPOINT', address), ('HUB_OFFLINE', '0'), ('HUB_DISABLE_TELEMETRY', '1')):
            monkeypatch.setenv(f'HF_{name}', value)
        yield folder


def test_a_dataset_on_hugging_face_is_streamed(hub, tmp_path):
    write_shards(hub, 'parquet', prefix='train-')
    (hub / 'README.md').write_text('none of the corpus')
    args = ['--tokenizer=char', '--out=out']
    done = run_script('text', '--source=hf://datasets/me/mine/train-*.parquet', *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train, val, meta = ids_and_meta(tmp_path / 'out')
    assert sorted(texts_of(train, meta) + texts_of(val, meta)) == sorted(STORIES)
    done = run_script('text', '--source=hf://datasets/me/mine/test-*', *args, cwd=tmp_path)
    assert done.returncode == 2 and 'has no files test-*' in done.stderr


def test_for_a_dataset_that_is_gone_others_are_suggested(hub, tmp_path):
    done = run_script('fineweb_edu', f'--out={tmp_path}', cwd=tmp_path)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'no dataset HuggingFaceFW/fineweb-edu: it was renamed or removed' in done.stderr
    assert "--source='hf://datasets/HuggingFaceFW/fineweb/" in done.stderr


# downloads of one file

@pytest.fixture
def server(tmp_path):
    """The address of a web server on loopback with one file, 'text'."""
    (tmp_path / 'web').mkdir()
    (tmp_path / 'web' / 'text').write_text('hello\n')
    with serving(functools.partial(Quiet, directory=str(tmp_path / 'web'))) as address:
        yield address


def test_a_download_is_kept_only_if_it_is_the_right_file(server, tmp_path):
    folder, right = str(tmp_path), hashlib.sha256(b'hello\n').hexdigest()
    for url, sha256, complaint in ((f'{server}/none', right, 'HTTP Error 404'), (f'{server}/text', '0' * 64, right)):
        with pytest.raises(ValueError, match=complaint):
            sources.download(folder, url, sha256)
        assert os.listdir(folder) == ['web']
    path = sources.download(folder, f'{server}/text', right)
    assert path == str(tmp_path / 'input.txt') and (tmp_path / 'input.txt').read_text() == 'hello\n'
    assert sources.download(folder, 'http://127.0.0.1:1/gone', right) == path, 'downloaded once'


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'WAITS', (0, 0))
    with pytest.raises(ValueError) as error:
        sources.download(str(tmp_path), 'http://127.0.0.1:1/text', '')
    said = str(error.value)
    assert str(tmp_path / 'input.txt') in said and '--input=FILE' in said and 'config/quickstart.py' in said


def test_a_download_that_breaks_off_is_retried_and_then_a_message(tmp_path, capsys, monkeypatch):
    urlopen = MagicMock()
    urlopen.return_value.__enter__.return_value.read.side_effect = http.client.IncompleteRead(b'hel')
    monkeypatch.setattr('urllib.request.urlopen', urlopen)
    monkeypatch.setattr(sources, 'WAITS', (0, 0))
    with pytest.raises(ValueError, match='IncompleteRead'):
        sources.download(str(tmp_path), 'http://127.0.0.1/text', '')
    assert capsys.readouterr().out.count('trying again') == 2 and os.listdir(tmp_path) == []
