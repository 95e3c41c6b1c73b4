"""Files are found on the disk and on Hugging Face, and a download is kept only if it is the right file."""
import contextlib
import errno
import functools
import hashlib
import http.client
import http.server
import json
import os
import re
import threading
from unittest.mock import MagicMock

import pytest

from corpus import sources
from test_pipeline import STORIES, ids_and_meta, prepare, run_script, texts_of, write_shards  # noqa: a fixture


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
                raise OSError(errno.EIO, 'Input/output error', path)
            return function(path, *args, **options)
        return fails
    for function, what, pattern in (('scandir', 'sub', ''), ('stat', 'b.txt', '*.txt'), ('stat', 'sub', '*')):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, failing(getattr(os, function), what))
            with pytest.raises(OSError, match='Input/output error'):
                sources.find(str(tmp_path / pattern))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder with three texts, and all that is not taken; named(pattern) are the names of what is, in order."""
    (tmp_path / 'in').mkdir()
    monkeypatch.chdir(tmp_path / 'in')
    for folder in ('sub/deep', '.git', 'sub/.ipynb_checkpoints', '../elsewhere'):
        os.makedirs(folder)
    for name in ('a.txt', 'sub/b.txt', 'sub/deep/c.md', '.git/d.txt', 'sub/.ipynb_checkpoints/b.txt', 'sub/._b.txt',
                 '.hidden.txt', '../elsewhere/e.txt', 'f.csv'):
        with open(name, 'w') as f:
            f.write(name)
    for name, target in (('sub/.#b.txt', 'nobody@nowhere'), ('g.txt', 'nowhere'), ('h.txt', 'h.txt'), ('loop', '.'),
                         ('sub/up', '..'), ('other', '../elsewhere'), ('i.txt', 'sub/b.txt')):
        os.symlink(target, name)
    os.link('a.txt', 'sub/same.txt')
    os.mkfifo('pipe.txt')
    return lambda pattern: [os.path.relpath(file['path']) for file in sources.find(pattern)]


@pytest.mark.parametrize('pattern', ['.', '*', '**', './**/*', '**/*.[tm]*'])
def test_of_a_folder_each_file_is_taken_once_and_what_is_not_is_said(tree, pattern, capsys):
    assert tree(pattern) == ['a.txt', 'sub/b.txt', 'sub/deep/c.md']
    said = capsys.readouterr().out
    for line in (['a link to nothing: ', 'no regular file (a pipe, a socket or a device): ', 'a link to itself: ',
                  'another name of a file that is taken: ', 'a link to a folder (to take it, name it with --input): ']):
        assert f'left out, {line}' in said, said
    assert 'left out, hidden: ' in said
    assert bool(re.search('left out, of another kind: .*f.csv\n', said)) == (not pattern.endswith('[tm]*'))


def test_what_is_named_is_taken_though_it_is_hidden_or_a_link(tree, capsys):
    assert tree('.hidden.txt') == ['.hidden.txt'] and tree('.git') == ['.git/d.txt'] and tree('.g*') == ['.git/d.txt']
    assert tree('other') == ['other/e.txt'] and tree('i.txt') == ['i.txt'] and tree('sub/d*') == ['sub/deep/c.md']
    assert capsys.readouterr().out == ''
    assert tree('**/deep') == ['sub/deep/c.md']
    for nothing in ('g.txt', 'h.txt', 'pipe.txt', 'f.csv', '**/x.txt'):
        with pytest.raises(ValueError, match='no file of .txt, .md, .jsonl, .parquet that can be read') as error:
            tree(nothing)
        left_out = 'left out, ' in capsys.readouterr().out
        assert left_out != ('convert other formats' in str(error.value)), 'only where that is the reason'


def test_a_folder_without_permission_is_named_and_the_others_are_taken(tree, monkeypatch, capsys):
    def scandir(path, original=os.scandir):
        if os.path.basename(path) == 'deep':
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        return original(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    assert tree('sub') == ['sub/b.txt', 'sub/same.txt']
    assert 'left out, a folder without permission to read: sub/deep\n' in capsys.readouterr().out
    with pytest.raises(ValueError, match='that can be read'):
        tree('sub/deep')


@pytest.mark.parametrize('name, remedy', [
    ('-', 'COMMAND > text.txt'), ('/dev/stdin', 'COMMAND > text.txt'), ('/dev/fd/63', 'COMMAND > text.txt'),
    ('https://example.org/a.txt', 'download it first'),
    ('https://huggingface.co/datasets/me/mine/tree/main', "--source='hf://datasets/me/mine/GLOB'")])
def test_what_is_no_name_of_a_file_gets_what_to_type_instead(name, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        sources.find(name)


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
    korean = [f'{i} 옛날 옛적에 호랑이가' for i in range(200)]
    rows = [json.dumps({'text': text}, ensure_ascii=False) for text in korean]
    (hub / 'old.jsonl').write_bytes('\n'.join(rows).encode('cp949'))
    args = ['--source=hf://datasets/me/mine/old.jsonl', '--tokenizer=char', '--out=old']
    done = run_script('text', *args, cwd=tmp_path)
    assert done.returncode == 2 and "'{\"text\": \"0 옛날 옛적에" in done.stderr and '--encoding=cp949' in done.stderr
    done = run_script('text', *args, '--encoding=cp949', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train, val, meta = ids_and_meta(tmp_path / 'old')
    assert sorted(texts_of(train, meta) + texts_of(val, meta)) == sorted(korean)
    done = run_script('text', '--source=hf://datasets/me/mine/test-*', *args[1:], cwd=tmp_path)
    assert done.returncode == 2 and 'has no files test-*' in done.stderr


def test_without_a_network_the_files_and_their_options_are_named_at_once(prepare, monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled
    asked = []

    def offline(*args, **options):
        asked.append(args)
        raise OfflineModeIsEnabled('offline mode is enabled')
    monkeypatch.setattr('huggingface_hub.dataset_info', offline)
    name = 'hf://datasets/me/mine@main/data'
    code, said = prepare(source=f'{name}/train-*.parquet', val_source=f'{name}/validation-*.parquet')
    assert code == 2 and len(asked) == 1, 'to ask again cannot help'
    for option, files in (('input', 'train-*.parquet'), ('val_input', 'validation-*.parquet')):
        assert f"data/{files} from https://huggingface.co/datasets/me/mine, as '--{option}={files}'" in said


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
    monkeypatch.setattr('common.download.WAITS', (0, 0))
    with pytest.raises(ValueError) as error:
        sources.download(str(tmp_path), 'http://127.0.0.1:1/text', '')
    said = str(error.value)
    assert str(tmp_path / 'input.txt') in said and '--input=FILE' in said and 'config/quickstart.py' in said


def test_a_download_that_breaks_off_is_retried_and_then_a_message(tmp_path, capsys, monkeypatch):
    urlopen = MagicMock()
    urlopen.return_value.__enter__.return_value.read.side_effect = http.client.IncompleteRead(b'hel')
    monkeypatch.setattr('urllib.request.urlopen', urlopen)
    monkeypatch.setattr('common.download.WAITS', (0, 0))
    with pytest.raises(ValueError, match='IncompleteRead'):
        sources.download(str(tmp_path), 'http://127.0.0.1/text', '')
    assert capsys.readouterr().out.count('trying again') == 2 and os.listdir(tmp_path) == []
