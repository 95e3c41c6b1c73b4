"""Unfinished work: what is damaged is set aside, what cannot be read now is left alone, what was delivered counts."""
import errno
import json
import os
import shutil

import pytest

from corpus import documents, encoding, pipeline, shards
from test_pipeline import STORIES, files_of, prepare  # noqa: a fixture
from test_documents import write

JOB = ['--input=a.jsonl', '--vocab_size=270']


@pytest.fixture
def whole(prepare, tmp_path, monkeypatch):
    """The files of the dataset of JOB, which is made in several shards."""
    for module, name, size in ((documents, 'BLOCK', 2000), (encoding, 'SHARD', 4000), (encoding, 'UNIT', 1000)):
        monkeypatch.setattr(module, name, size)
    prepare(*JOB, out='whole')
    return files_of(tmp_path / 'whole')


@pytest.fixture
def work(whole, prepare, tmp_path, monkeypatch):
    """The folder of JOB's unfinished work in out/, with some shards."""
    def stop(shards, plan):
        raise OSError(errno.EIO, 'Input/output error')
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, 'complete', stop)
        assert prepare(*JOB)[0] == 2
    folder, = (tmp_path / 'out').glob('unfinished-*')
    assert json.loads((folder / 'manifest.json').read_text())['shards'] > 2
    return folder


def failing(function, name, error):
    """`function`, which raises OSError when it is called about a file of that name."""
    def fails(path, *args, **options):
        if isinstance(path, (str, os.PathLike)) and os.path.basename(path) == name:
            raise OSError(error, os.strerror(error), path)
        return function(path, *args, **options)
    return fails


def changed(manifest, key, value):
    return json.dumps({**json.loads(manifest), key: value}).encode()


DAMAGE = {
    'empty': lambda manifest: b'', 'half': lambda manifest: manifest[:len(manifest) // 2],
    'list': lambda manifest: b'[]', 'number': lambda manifest: b'12', 'null': lambda manifest: b'null',
    'last': lambda manifest: b'{"last": 3}', 'no UTF-8': lambda manifest: b'\xff\xfe',
    'deep': lambda manifest: b'[' * 200_000,
    'plan': lambda manifest: changed(manifest, 'plan', {}), 'shards': lambda manifest: changed(manifest, 'shards', '3'),
    'lengths': lambda manifest: changed(manifest, 'last', {'lengths': {'train.bin': 'x'}}),
    'ready': lambda manifest: changed(manifest, 'ready', ['train.bin']),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_work_is_set_aside_and_begun_anew(whole, work, prepare, tmp_path, damage, capsys):
    manifest = (work / 'manifest.json').read_bytes()
    (work / 'manifest.json').write_bytes(DAMAGE[damage](manifest))
    before = files_of(work)
    prepare(*JOB)
    assert files_of(tmp_path / 'out') == whole and not work.exists()
    aside = work.with_name(f'{work.name}-damaged')
    assert files_of(aside) == before and f'is in out/{aside.name} now' in capsys.readouterr().out


def test_work_whose_files_lost_something_is_set_aside(whole, work, prepare, tmp_path):
    os.truncate(work / 'train.bin', 10)
    prepare(*JOB)
    assert files_of(tmp_path / 'out') == whole
    assert (work.with_name(f'{work.name}-damaged') / 'train.bin').stat().st_size == 10


@pytest.mark.parametrize('error', [errno.EACCES, errno.EIO, errno.ESTALE])
def test_work_that_cannot_be_read_now_is_left_alone(whole, work, prepare, tmp_path, monkeypatch, error):
    before = files_of(work)
    with monkeypatch.context() as patch:
        patch.setattr('builtins.open', failing(open, 'manifest.json', error))
        code, said = prepare(*JOB)
    assert code == 2 and os.strerror(error) in said and 'run the same command again' in said
    assert files_of(work) == before
    prepare(*JOB)
    assert files_of(tmp_path / 'out') == whole


@pytest.mark.parametrize('name', ['train.bin', 'val.bin', 'meta.json', 'tokenizer.json'])
def test_a_dataset_that_cannot_be_read_now_is_not_replaced(whole, prepare, tmp_path, monkeypatch, name):
    for error in (errno.EACCES, errno.EIO):
        with monkeypatch.context() as patch:
            patch.setattr('builtins.open', failing(open, name, error))
            patch.setattr('io.open', failing(open, name, error))  # pathlib's
            code, said = prepare(*JOB, out='whole')
        assert code == 2 and os.strerror(error) in said and said.count('\n') == 1
    assert files_of(tmp_path / 'whole') == whole and sorted(os.listdir(tmp_path / 'whole')) == sorted(whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize('moves', [2, 4])
def test_what_another_job_has_delivered_is_not_taken_for_our_own(whole, prepare, tmp_path, monkeypatch, moves):
    """One job is killed while its files take their places, or after that; another one ends; the first runs again."""
    moved, replace = [], os.replace

    def kill(*args):
        raise Killed

    def replace_or_kill(source, target):
        if 'unfinished' not in target:
            moved.append(target)
            if len(moved) > moves:
                kill()
        replace(source, target)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, 'replace', replace_or_kill)
        patch.setattr(shards.Shards, 'remove', kill)
        prepare(*JOB)
    work, = (tmp_path / 'out').glob('unfinished-*')
    write(tmp_path / 'b.jsonl', STORIES[:100])
    prepare('--input=b.jsonl', '--vocab_size=260')
    code = prepare(*JOB)[0]
    if moves == 2:  # one file is in its place, and was overwritten
        assert code == 2
        prepare(*JOB)
    assert files_of(tmp_path / 'out') == whole and not work.exists()


def test_work_that_cannot_be_removed_is_no_failure(whole, prepare, tmp_path, monkeypatch, capsys):
    def busy(folder, **options):
        raise OSError(errno.ENOTEMPTY, 'Directory not empty', folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'rmtree', busy)
        assert len(prepare(*JOB)) == 3, 'not a failure'
    assert 'can be deleted, but not now' in capsys.readouterr().out
    assert files_of(tmp_path / 'out') == whole
    prepare(*JOB)
    assert sorted(os.listdir(tmp_path / 'out')) == sorted(whole)
