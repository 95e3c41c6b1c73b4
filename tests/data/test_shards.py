"""Unfinished work: what is damaged is set aside, what cannot be read now is left alone, what was delivered counts."""
import errno
import json
import os
import shutil

import pytest

from common import files
from corpus import documents, encoding, pipeline, shards
from running import ROOT, python
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


# what is left over

def test_unfinished_work_is_named_with_its_size_and_can_be_removed(whole, work, prepare, capsys):
    with open(work / 'val_keys', 'ab') as f:
        f.write(bytes(10_000_000))
    prepare('--input=a.jsonl', '--vocab_size=280')
    line = (f'out/{work.name} is unfinished work of another command, 10.1 MB; to remove it: python data/corpus.py '
            'clean out\n')
    said = capsys.readouterr().out
    assert said.endswith(line) and said.count(work.name) == 1
    made = files_of(work.parent)
    assert shards.clean('out', dry_run=True) and work.exists()
    assert f'would remove out/{work.name}, 10.1 MB\n' in capsys.readouterr().out
    assert shards.clean('out', dry_run=False) and not work.exists() and files_of(work.parent) == made
    assert f'removed out/{work.name}, 10.1 MB\n' in capsys.readouterr().out
    assert shards.clean('out', dry_run=False) and 'has left anything in out' in capsys.readouterr().out


def test_clean_leaves_alone_what_is_in_use_and_what_is_not_ours(whole, work, tmp_path, capsys):
    out, aside = work.parent, work.with_name(f'{work.name}-damaged-2')
    shutil.copytree(work, aside)
    for folder in ('unfinished-thesis', 'unfinished-0000000', 'thesis', 'unfinished-11111111/chapters'):
        os.makedirs(out / folder)
    (out / 'unfinished-22222222').symlink_to(tmp_path / 'whole')
    for name in ('thesis.tmp', 'unfinished-33333333', 'input.txt.tmp'):
        (out / name).write_text('mine')
    shutil.copytree(work, out / 'unfinished-44444444')
    (out / 'unfinished-44444444' / 'notes.txt').write_text('mine')
    lock = files.lock(str(work / '.lock'))
    assert not shards.clean('out', dry_run=False)
    lock.release()
    said = capsys.readouterr().out
    assert not aside.exists() and said.count('removed') == 1
    assert f'left alone: another process is at work in out/{work.name}\n' in said and work.exists()
    assert 'out/unfinished-44444444 has notes.txt, which no preparation writes' in said
    assert 'out/unfinished-11111111 has chapters, which' in said
    assert files_of(tmp_path / 'whole') == whole
    os.utime(out / 'input.txt.tmp', (0, 0))  # a user's own, however old
    assert not shards.clean('out', dry_run=False)
    assert sorted(set(os.listdir(out)) - {'.lock'}) == [
        'input.txt.tmp', 'thesis', 'thesis.tmp', 'unfinished-0000000', 'unfinished-11111111', 'unfinished-22222222',
        'unfinished-33333333', 'unfinished-44444444', 'unfinished-thesis']


def test_clean_is_a_command(work, tmp_path):
    script = os.path.join(ROOT, 'data', 'corpus.py')
    for words, code, said in ((['clean', 'out', '--dry_run'], 0, ''), (['clean', '--dry_run=True', 'out'], 0, ''),
                              (['clean', 'none'], 2, 'there is no folder none'),
                              (['clear', 'out', '--dry_run'], 2, "unknown command 'clear'; did you mean clean?"),
                              (['clean', 'out', '--dry-run'], 2, '--dry-run; did you mean dry_run?'),
                              (['check', 'out', '--dry_run'], 2, 'unknown setting --dry_run; ')):
        done = python(script, *words, cwd=tmp_path)
        assert done.returncode == code and said in done.stderr and 'Traceback' not in done.stderr and work.exists()
    done = python(script, 'clean', 'out', cwd=tmp_path)
    assert done.returncode == 0 and f'removed out/{work.name}' in done.stdout and not work.exists()


@pytest.mark.parametrize('moment', ['before the lock', 'before the lock is held'])
def test_work_that_another_process_finishes_and_removes_at_this_moment_is_begun_anew(tmp_path, monkeypatch, moment):
    folder = tmp_path / 'unfinished-00000000'
    ours, removals = files.lock_if_possible, [folder]

    def lock(path, advice):
        if moment == 'before the lock' and removals:
            shutil.rmtree(removals.pop())
        held = ours(path, advice)
        if removals:
            shutil.rmtree(removals.pop())
        return held
    monkeypatch.setattr(files, 'lock_if_possible', lock)
    work = shards.Shards(str(folder))
    assert (folder / '.lock').exists() and not removals
    work.release()


def test_a_first_mistake_leaves_nothing_to_remove(prepare, tmp_path):
    (tmp_path / 'b.jsonl').write_text('{"text": "one"}\nnonsense\n')
    (tmp_path / 'c.txt').write_text('a')
    for name in ('b.jsonl', 'c.txt'):
        assert prepare(f'--input={name}')[0] == 2 and os.listdir(tmp_path / 'out') == []


@pytest.mark.parametrize('killed', [False, True])
def test_characters_in_place_of_a_learned_vocabulary_leave_no_tokenizer_behind(whole, prepare, tmp_path, monkeypatch,
                                                                               killed):
    def kill(*args):
        raise Killed
    prepare(*JOB)
    if killed:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, 'remove', lambda path, remove=os.remove: kill() if 'tokenizer' in path else remove(path))
            prepare('--input=a.jsonl')
        assert (tmp_path / 'out' / 'tokenizer.json').exists()
    prepare('--input=a.jsonl')
    assert sorted(files_of(tmp_path / 'out')) == ['meta.json', 'train.bin', 'val.bin']
