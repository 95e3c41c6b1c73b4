"""Datasets that are not as they should be: what is said of them, and whether the advice helps."""
import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from common import dataset
from running import ROOT, ok, python, run_all

META = {'tokenizer': 'char', 'vocab_size': 4, 'chars': '\nabc', 'dtype': 'uint16'}


@pytest.fixture
def make(tmp_path):
    """make(train=100, val=50, masks=False, key=value, ...): the folder of a dataset; the rest changes its meta.json."""
    def make(train=100, val=50, masks=False, **changes):
        folder = tmp_path / 'mine'
        folder.mkdir(exist_ok=True)
        meta = {**META, **changes}
        for split, size in (('train', train), ('val', val)):
            (np.arange(size) % 4).astype(meta['dtype']).tofile(folder / f'{split}.bin')
            if masks:
                (np.arange(size) % 2).astype(np.uint8).tofile(folder / f'{split}_mask.bin')
        (folder / 'meta.json').write_text(json.dumps(meta))
        return folder
    return make


def check(folder, block_size=8):
    return dataset.check(str(folder), dataset.read_meta(str(folder)), block_size)


@pytest.mark.parametrize('dtype', dataset.DTYPES)
def test_a_dataset_that_is_whole_passes(make, dtype):
    assert check(make(masks=True, dtype=dtype)) == {'train': 100, 'val': 50}


def test_a_folder_is_found_by_its_name_in_data_or_by_its_path(tmp_path, monkeypatch):
    for place in ('data/one', 'data/two', 'two', 'three'):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / 'one').touch()
    monkeypatch.chdir(tmp_path)
    root = str(tmp_path)
    assert dataset.find(root, 'one') == f'{root}/data/one' and dataset.find(root, 'two') == f'{root}/data/two'
    assert dataset.find(root, 'three') == 'three' and dataset.find(root, f'{root}/three') == f'{root}/three'
    assert dataset.find(root, 'none') == f'{root}/data/none'


@pytest.mark.parametrize('name, expected', [
    ('', "dataset='' names no folder"), (None, 'dataset=None names no folder'), (['a'], 'names no folder'),
    ('a b/train.bin', "try --dataset='a b'"), ('mine.txt', 'data/text/prepare.py --input=mine.txt --out=mine')])
def test_a_dataset_that_is_no_folder_is_refused(tmp_path, monkeypatch, name, expected):
    (tmp_path / 'a b').mkdir()
    for file in ('a b/train.bin', 'mine.txt'):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        dataset.find(str(tmp_path), name)
    assert expected in str(error.value)


# meta.json

BPE = {'tokenizer': 'bpe', 'vocab_size': 4, 'dtype': 'uint16', 'tokenizer_file': 'tokenizer.json', 'sha256': {}}


@pytest.mark.parametrize('content', [
    '', '{', '[]', 'null', '3', '"meta"', '\0', '[' * 100000, '{"vocab_size": ' + '9' * 5000 + '}',
    *({key: value for key, value in META.items() if key != left_out} for left_out in META),
    *({**META, **change} for change in (
        {'dtype': 'float32'}, {'dtype': 'int16'}, {'dtype': 'object'}, {'dtype': None}, {'dtype': ['u', 2]},
        {'tokenizer': 'words'}, {'tokenizer': None}, {'vocab_size': '4'}, {'vocab_size': 3}, {'vocab_size': 5},
        {'vocab_size': 0}, {'vocab_size': 4.0}, {'vocab_size': None}, {'chars': 3}, {'chars': '\nabb'},
        {'chars': ['a', 'b', 'c', 1]}, {'sha256': []}, {'train_tokens': '100'}, {'train_tokens': None})),
    {'tokenizer': 'gpt2', 'vocab_size': 50304, 'dtype': 'uint16'},
    *({**BPE, **change} for change in ({}, {'tokenizer_file': None}, {'tokenizer_file': 3}, {'sha256': None},
                                       {'tokenizer_file': 'none.json'}, {'sha256': {'tokenizer.json': 3}}))])
def test_a_damaged_meta_is_named_with_a_way_to_make_it_anew(make, content):
    folder = make()
    (folder / 'tokenizer.json').write_text('{}')
    (folder / 'meta.json').write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as error:
        dataset.read_meta(str(folder))
    assert str(error.value).startswith(f'{folder}/meta.json is damaged (')
    assert 'data/text/prepare.py --input=FILE --out=' in str(error.value)


def test_a_meta_that_is_not_text_is_damaged(make):
    folder = make()
    (folder / 'meta.json').write_bytes(b'\xff\x00{')
    with pytest.raises(ValueError, match='meta.json is damaged'):
        dataset.read_meta(str(folder))


def test_bins_without_a_meta_are_those_of_the_original(make):
    folder = make()
    (folder / 'meta.json').unlink()
    assert dataset.read_meta(str(folder)) == {'tokenizer': 'gpt2', 'vocab_size': 50257, 'dtype': 'uint16'}


@pytest.mark.parametrize('has_meta', [True, False])
def test_ids_beyond_the_vocabulary_are_refused_and_without_a_meta_one_for_own_ids_is_named(make, has_meta):
    folder = make(tokenizer='ids', vocab_size=50257)
    if not has_meta:
        (folder / 'meta.json').unlink()
    np.full(50, 50257, np.uint16).tofile(folder / 'val.bin')
    with pytest.raises(ValueError, match='has the token id 50257, which is not below') as error:
        check(folder)
    named = re.findall(r'docs/\S+\.md', str(error.value))
    assert named == ['docs/own_ids.md'] and 'vocab_size=50257' in str(error.value)
    assert all(os.path.exists(os.path.join(ROOT, path)) for path in named)


@pytest.mark.parametrize('number', [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize('name', ['train.bin', 'meta.json', 'train_mask.bin'])
def test_what_cannot_be_read_just_now_is_not_called_damaged(make, monkeypatch, name, number):
    folder, usual = make(masks=True), os.stat

    def stat(path, **options):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return usual(path, **options)
    monkeypatch.setattr(os, 'stat', stat)
    with pytest.raises(OSError) as error:
        check(folder)
    assert error.value.errno == number


@pytest.mark.parametrize('name', ['meta.json', 'tokenizer.json'])
def test_nor_is_what_cannot_be_read_once_it_is_open(make, monkeypatch, name):
    folder, usual = make(**BPE), Path.read_bytes
    (folder / 'tokenizer.json').write_text('{}')

    def read(path):
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return usual(path)
    monkeypatch.setattr(Path, 'read_bytes', read)
    with pytest.raises(OSError, match=name):
        dataset.read_meta(str(folder))


@pytest.mark.parametrize('name', ['train.bin', 'val.bin', 'meta.json', 'val_mask.bin'])
def test_a_folder_or_a_link_to_nothing_in_place_of_a_file_is_named(make, name):
    """Bins without a meta.json would be read as GPT-2's, and without a mask every token would count."""
    folder = make(masks=True)
    (folder / name).unlink()
    (folder / name).symlink_to('gone')
    with pytest.raises(FileNotFoundError, match=f'{name} is a link to gone, which does not exist'):
        check(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(FileNotFoundError, match=f'{name} is a folder'):
        check(folder)


@pytest.mark.parametrize('checkpoint', [
    None, {}, {'config': None}, {'config': []}, {'config': {}}, {'config': {'dataset': None}},
    {'config': {'dataset': 5}}, {'config': {'dataset': ''}}, {'config': {'dataset': ['a']}}, {'meta': {}}])
def test_weights_whose_vocabulary_nobody_knows_are_refused(checkpoint):
    with pytest.raises(ValueError, match='no tokenizer is known for these weights, which have 65 ids'):
        dataset.meta_of(ROOT, checkpoint, 65)
    assert dataset.meta_of(ROOT, checkpoint, 50304)['tokenizer'] == 'gpt2'


def test_weights_have_the_vocabulary_of_their_checkpoint_or_else_of_its_dataset(make):
    folder = str(make())
    assert dataset.meta_of(ROOT, {'meta': META, 'config': {}}, 4) == META
    assert dataset.meta_of(ROOT, {'config': {'dataset': folder}}, 4) == META
    with pytest.raises(FileNotFoundError, match='has no train.bin'):
        dataset.meta_of(ROOT, {'config': {'dataset': f'{folder}/none'}}, 4)


# bins

@pytest.mark.parametrize('dtype, extra', [('uint16', b'\0'), ('uint32', b'\0'), ('uint32', b'\0\0')])
@pytest.mark.parametrize('split', dataset.SPLITS)
def test_a_bin_that_was_cut_off_is_named(make, split, dtype, extra):
    folder = make(dtype=dtype)
    with open(folder / f'{split}.bin', 'ab') as f:
        f.write(extra)
    with pytest.raises(ValueError, match=f'{split}.bin has .*as a copy that was cut off: copy it again'):
        check(folder)
    (folder / 'meta.json').unlink()
    if extra == b'\0':
        with pytest.raises(ValueError, match=f'{split}.bin has an odd number of bytes, as a copy that was cut off'):
            check(folder)


def test_a_block_size_that_the_message_names_fits():
    """Also where val is shorter than train; if none does, it does not name one."""
    for train in range(6):
        for val in range(6):
            for block_size in (1, 2, 3, 5, 9):
                sizes, complaints = {'train': train, 'val': val}, []
                while block_size + 1 > min(train, val):
                    with pytest.MonkeyPatch.context() as patched, pytest.raises(ValueError) as error:
                        patched.setattr(dataset, 'count_tokens', lambda folder, split, meta: sizes[split])
                        dataset.check('mine', META, block_size)
                    complaints.append(str(error.value))
                    assert 'more text' in complaints[-1]
                    named = re.search(r'try --block_size=(\d+)', complaints[-1])
                    assert bool(named) == (min(train, val) > 1)
                    if not named:
                        break
                    block_size = int(named[1])
                assert len(complaints) <= 1


@pytest.mark.parametrize('train, val', [(0, 50), (1, 50), (100, 0), (100, 1)])
def test_a_split_without_text_is_named(make, train, val):
    with pytest.raises(ValueError, match=r'(train|val).bin has (0|1) tokens, but .* it needs more text$'):
        check(make(train, val), block_size=1)


@pytest.mark.parametrize('spoil, expected', [
    (lambda folder: np.full(50, 4, np.uint16).tofile(folder / 'val.bin'), 'val.bin has the token id 4'),
    (lambda folder: (folder / 'val_mask.bin').write_bytes(b'\1' * 49), 'val_mask.bin has 49 entries for 50 tokens'),
    (lambda folder: (folder / 'val_mask.bin').write_bytes(b''), 'val_mask.bin has 0 entries for 50 tokens'),
    (lambda folder: (folder / 'val_mask.bin').write_bytes(b'\0' * 50), 'excludes every token'),
    (lambda folder: (folder / 'val_mask.bin').write_bytes(b'\2' + b'\1' * 49), 'no other bytes than 0 and 1'),
    (lambda folder: (folder / 'val_mask.bin').write_bytes(b'\1' * 49 + b'1'), 'no other bytes than 0 and 1')])
def test_what_is_wrong_within_a_bin_is_named_with_a_way_to_make_it_anew(make, spoil, expected):
    folder = make(masks=True)
    spoil(folder)
    with pytest.raises(ValueError) as error:
        check(folder)
    assert expected in str(error.value) and 'prepare.py' in str(error.value)


# what to type

def test_the_commands_in_messages_can_be_pasted(tmp_path, make):
    place = tmp_path / 'a b'
    place.mkdir()
    (place / 'prepare.py').write_text('print("made")')
    command = dataset.how_to_prepare(str(place)).removeprefix('run: ')
    assert os.path.samefile(shlex.split(command)[1], place / 'prepare.py')
    missing = dataset.how_to_prepare(str(tmp_path / 'new one'))
    for name in shlex.split(missing.partition('known to --dataset are ')[2].partition(';')[0].replace(',', ' ')):
        assert os.path.isdir(dataset.find(ROOT, name)), missing
    (tmp_path / 'text.txt').write_text('some text\n' * 100)
    words = shlex.split(missing.rpartition('of your own text: ')[2].replace('FILE', str(tmp_path / 'text.txt')))
    ok(python(os.path.abspath(words[1]), *words[2:], '--tokenizer=char', cwd=os.getcwd()))
    assert check(tmp_path / 'new one') == {'train': 900, 'val': 100}


def test_datasets_in_data_are_known_by_their_names():
    assert 'known to --dataset are alpaca, ' in dataset.how_to_prepare(os.path.join(ROOT, 'data', 'none'))


def test_a_preparation_that_fails_is_named_with_the_command(tmp_path, capfd):
    with pytest.raises(FileNotFoundError, match="dataset 'mine' is not there"):
        dataset.prepare(str(tmp_path / 'mine' / ''))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'prepare.py').write_text('raise SystemExit(3)')
    with pytest.raises(ValueError, match=r'mine/prepare.py did not finish \(exit code 3\).*run: python .*prepare.py'):
        dataset.prepare(str(tmp_path / 'mine' / ''))
    (tmp_path / 'mine' / 'prepare.py').write_text("open(__file__.replace('prepare.py', 'train.bin'), 'w')")
    dataset.prepare(str(tmp_path / 'mine'))
    assert 'no mine/train.bin yet: running' in capfd.readouterr().out
    shutil.copy(os.devnull, tmp_path / 'mine' / 'prepare.py')
    dataset.prepare(str(tmp_path / 'mine'))
    assert capfd.readouterr().out == ''


def test_of_runs_that_begin_at_once_one_prepares_and_the_others_wait(tmp_path, capfd):
    (tmp_path / 'prepare.py').write_text("""if True:
        import os, time
        try:
            os.mkdir('made')
        except FileExistsError:
            open('second', 'w')
            raise
        while not os.path.exists('second'):
            time.sleep(0.01)
        open('train.bin', 'w')""")
    code = """if True:
        from common import dataset, files
        def lock(path, wait=False, ours=files.lock):
            if wait:
                open('second', 'w')
            return ours(path, wait)
        files.lock = lock
        dataset.prepare('.')"""
    done = run_all([['-c', code]] * 2, tmp_path, [{'PYTHONPATH': ROOT}] * 2)
    said = sorted(ok(one).stdout for one in done)
    assert said == ['another run is preparing .; waiting for it\n', 'no ./train.bin yet: running prepare.py\n']


def test_bytes_per_token_are_known_where_they_were_counted():
    meta = {'tokenizer': 'char', 'vocab_size': 9, 'sha256': {'val.bin': 'abc'},
            'scored': {'val': {'tokens': 10, 'bytes': 25}}}
    assert dataset.bytes_per_token(meta, 'val') == 2.5
    assert dataset.identity(meta) == {'tokenizer': 'char', 'vocab_size': 9, 'val_sha256': 'abc', 'val_bytes': 25}
    for scored in (None, {}, [], {'val': None}, {'val': {'tokens': 0, 'bytes': 5}}, {'val': {'tokens': -1, 'bytes': 5}},
                   {'val': {'tokens': 'x', 'bytes': 5}}, {'val': {'tokens': 5, 'bytes': 0}}):
        meta['scored'] = scored
        assert dataset.bytes_per_token(meta, 'val') is None and dataset.identity(meta)['val_bytes'] is None
