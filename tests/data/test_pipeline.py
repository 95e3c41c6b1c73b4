"""Prepare scripts: the datasets they make, known counts, kills, full disks, and errors that say what to do."""
import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from common import dataset, settings, tokenizer
from conftest import make_dataset, slow
from corpus import documents, encoding, inspection, pipeline, plan
from running import HANG, ROOT, python
from test_documents import short, write

SHARED = os.path.join(ROOT, '..', 'shared', 'data')
WORDS = 'the cat sees a dog that likes one bird and follows my fish home again'.split()
STORIES = [f'Story {i}. ' + ' '.join(WORDS[i * k % 14] for k in range(3, 20)) + '.' for i in range(400)]
needs_gpt2 = pytest.mark.skipif(not os.environ.get('TIKTOKEN_CACHE_DIR'), reason="needs GPT-2's vocabulary files")


def write_shards(folder, suffix, prefix=''):
    """The stories in three files."""
    for shard in range(3):
        write(folder / f'{prefix}{shard}.{suffix}', STORIES[shard * 130:][:130 if shard < 2 else None])


def run_script(name, *args, cwd):
    """Run data/NAME/prepare.py as a user does; returns the CompletedProcess."""
    return python(os.path.join(ROOT, 'data', name, 'prepare.py'), *args, cwd=cwd)


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """
    prepare('--input=a.jsonl', ...): run a prepare script with this command line in this process and tmp_path, with one
    id per character. Returns (train, val, meta), or (exit code, stderr) if it failed. a.jsonl has the stories.
    """
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'a.jsonl', STORIES)

    def run(*args, out='out', **recipe):
        monkeypatch.setattr(sys, 'argv', ['prepare.py', f'--out={out}', *map(str, args)])
        try:
            pipeline.prepare('unused', 'a corpus', **{'tokenizer': 'char', **recipe})
        except SystemExit as stopped:
            return stopped.code, capsys.readouterr().err
        return ids_and_meta(tmp_path / out)
    return run


def ids_and_meta(folder):
    meta = dataset.read_meta(str(folder))
    return [*(np.array(dataset.open_tokens(str(folder), split, meta)) for split in ('train', 'val')), meta]


def texts_of(ids, meta, separator='\n\n'):
    """The documents in a split; its words if the separator is None."""
    return tokenizer.from_meta(meta).decode(ids.tolist()).split(separator)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# the datasets

@pytest.mark.parametrize('kind', ['txt', 'jsonl', 'parquet'])
def test_documents_go_by_their_hash_to_train_or_val(prepare, tmp_path, kind):
    write_shards(tmp_path, kind)
    train, val, meta = prepare(f'--input=[0-9].{kind}')
    in_val = [text for text in STORIES if documents.hash_of(text) < 0.1]
    assert texts_of(val, meta) == in_val and 20 < len(in_val) < 60
    assert texts_of(train, meta) == [text for text in STORIES if text not in in_val]
    assert meta['documents'] == {'train': 400 - len(in_val), 'val': len(in_val)}
    assert (meta['train_tokens'], meta['val_tokens'], meta['dtype']) == (len(train), len(val), 'uint16')
    content = (tmp_path / 'out' / 'val.bin').read_bytes()
    assert meta['sha256']['val.bin'] == hashlib.sha256(content).hexdigest()
    assert sorted(os.listdir(tmp_path / 'out')) == ['meta.json', 'train.bin', 'val.bin'], 'no work is left behind'


def test_val_stays_where_it_is_when_the_corpus_grows(prepare, tmp_path):
    write(tmp_path / 'a.jsonl', STORIES[:300])
    write(tmp_path / 'b.jsonl', STORIES)
    _, few, few_meta = prepare('--input=a.jsonl')
    _, many, many_meta = prepare('--input=b.jsonl', out='grown')
    assert texts_of(many, many_meta)[:few_meta['documents']['val']] == texts_of(few, few_meta)
    assert texts_of(few, few_meta) != STORIES[:300]


def test_a_file_for_both_splits_is_for_validation_under_any_name(prepare, tmp_path, capsys):
    write(tmp_path / 'b.jsonl', STORIES[:50])
    (tmp_path / 'link.jsonl').symlink_to('b.jsonl')
    train, val, meta = prepare('--input', 'a.jsonl', 'b.jsonl', 'b.jsonl', '--val_input=link.jsonl')
    assert meta['documents'] == {'train': 400, 'val': 50}
    assert f'{tmp_path}/b.jsonl is for validation, and so left out of' in capsys.readouterr().out


def test_copies_of_a_document_stay_together_and_are_counted_across_separate_files(prepare, tmp_path, capsys):
    write(tmp_path / 'a.jsonl', [*STORIES, *STORIES])
    train, val, meta = prepare('--input=a.jsonl')
    assert not set(texts_of(train, meta)) & set(texts_of(val, meta)) and meta['train_documents_in_val'] == 0
    write(tmp_path / 'val.jsonl', [*STORIES[:3], 'new', 'newer'])
    train, val, meta = prepare('--input=a.jsonl', '--val_input=val.jsonl')
    assert texts_of(val, meta) == [*STORIES[:3], 'new', 'newer'] and meta['documents']['train'] == 800
    assert meta['train_documents_in_val'] == 6
    assert '6 documents of train are in val, too' in capsys.readouterr().out


def test_a_few_documents_are_cut_at_ninety_percent_of_each(prepare, tmp_path):
    write(tmp_path / 'books.parquet', STORIES[:5])
    train, val, meta = prepare('--input=books.parquet')
    assert texts_of(train, meta) == [text[:int(len(text) * 0.9)] for text in STORIES[:5]]
    assert texts_of(val, meta) == [text[int(len(text) * 0.9):] for text in STORIES[:5]]


def test_a_character_corpus_comes_back_from_its_ids(tmp_path):
    text = 'To be, or not to be:\n가나다 🙂\n' * 50
    train, val, meta = ids_and_meta(make_dataset(tmp_path, text))
    assert ''.join(meta['chars'][i] for i in np.concatenate((train, val))) == text
    assert meta['vocab_size'] == len(set(text)) and len(train) == int(0.9 * len(text)) == meta['train_tokens']


def test_a_vocabulary_beyond_uint16_takes_uint32(prepare, tmp_path):
    write(tmp_path / 'a.txt', [''.join(map(chr, range(0x10000, 0x10000 + 70000)))])
    train, val, meta = prepare('--input=a.txt')
    assert meta['dtype'] == 'uint32' and meta['vocab_size'] == 70000
    assert np.array_equal(np.concatenate((train, val)), np.arange(70000))


@pytest.mark.slow
def test_a_document_of_50_mb(prepare, tmp_path):
    line = 'Any word, and another 1 one.\n'
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': line * (50_000_000 // len(line))}))
    train, val, meta = prepare('--input=a.jsonl')
    assert len(train) + len(val) == 50_000_000 // len(line) * len(line) and meta['documents']['train'] == 1
    start = 20_000_000 // len(line) * len(line)
    assert ''.join(texts_of(train[start:start + 2 * len(line)], meta)) == line * 2


def test_a_long_text_has_no_separators_within(prepare, tmp_path, short):
    lines = '\n'.join(STORIES)
    (tmp_path / 'a.txt').write_text(lines)
    (tmp_path / 'b.txt').write_text('another')
    train, val, meta = prepare('--input=a.txt', '--val_input=b.txt')
    assert texts_of(train, meta) == [lines] and meta['documents'] == {'train': 1, 'val': 1}


def test_a_long_text_is_cut_once(prepare, tmp_path, short):
    lines = '\n'.join(STORIES)
    (tmp_path / 'a.txt').write_text(lines)
    train, val, meta = prepare('--input=a.txt')
    assert ''.join(texts_of(train, meta, None) + texts_of(val, meta, None)) == ''.join(lines.split())
    assert len(train) + len(val) == len(lines) and len(train) == pytest.approx(0.9 * len(lines), abs=2)
    train, val, meta = prepare('--input=a.txt', '--val_fraction=0.5')
    assert len(train) == pytest.approx(0.5 * len(lines), abs=2) and meta['split'] == 'the last 50% of each document'


def test_a_long_document_is_in_train_or_in_val(prepare, tmp_path, short):
    texts = [f'{i} ' + story * 20 for i, story in enumerate(STORIES[:150])]
    write(tmp_path / 'a.txt', texts)
    train, val, meta = prepare('--input=a.txt')
    assert sorted(texts_of(train, meta) + texts_of(val, meta)) == sorted(texts) and meta['documents']['val'] > 5


def test_a_vocabulary_is_learned_from_every_file(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, 'BPE_TEXT', 4000)
    for i, word in enumerate(('zygote', 'quixotic', 'jukebox')):
        write(tmp_path / f'{i}.parquet', [f'{word} {story}' for story in STORIES])
    _, _, meta = prepare('--input=*.parquet', '--vocab_size=400')
    assert all(f'"Ġ{word}"' in meta['tokenizer_json'] or f'"{word}"' in meta['tokenizer_json']
               for word in ('zygote', 'quixotic', 'jukebox'))


def test_a_fraction_of_the_source_is_always_the_same_documents(prepare, tmp_path):
    for size in (400, 3):  # one row group, which gives some rows; many, some of which are taken whole
        write(tmp_path / 'a.parquet', STORIES, row_group_size=size)
        write(tmp_path / 'b.parquet', STORIES)
        whole, *_ = prepare('--input=a.parquet', '--val_input=b.parquet')
        some, _, meta = prepare('--input=a.parquet', '--val_input=b.parquet', '--fraction=0.3')
        again, *_ = prepare('--input=a.parquet', '--val_input=b.parquet', '--fraction=0.3', out='again')
        assert np.array_equal(some, again) and 0.2 < len(some) / len(whole) < 0.4
        rows = [STORIES.index(text) for text in texts_of(some, meta)]
        assert size == 400 or rows == sorted(3 * group + i for group in {row // 3 for row in rows} for i in range(3)
                                             if 3 * group + i < 400)


def test_a_learned_vocabulary_is_that_of_the_tokenizers_library(prepare, tmp_path):
    from tokenizers import Tokenizer
    texts = [*STORIES, 'how to write <|endoftext|> 가🙂']
    write(tmp_path / 'a.jsonl', texts)
    train, val, meta = prepare('--input=a.jsonl', '--vocab_size=300')
    theirs = Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
    theirs.encode_special_tokens = True
    assert (meta['vocab_size'], meta['tokenizer_file'], theirs.get_vocab_size()) == (300, 'tokenizer.json', 300)
    for ids, is_val in ((train, False), (val, True)):
        encoded = [theirs.encode(text).ids for text in texts if (documents.hash_of(text) < 0.1) == is_val]
        expected = sum(([0, *document] for document in encoded), [])[1:]
        assert ids.tolist() == expected and theirs.token_to_id('<|endoftext|>') == 0
    assert '<|endoftext|>'.join(text for text in texts if documents.hash_of(text) >= 0.1) == (
        tokenizer.from_meta(meta).decode(train.tolist()))


def test_a_vocabulary_is_learned_the_same_way_twice_and_can_be_shared(prepare, tmp_path):
    write(tmp_path / 'b.jsonl', ['other words', *STORIES[:3]])
    train, val, meta = prepare('--input=a.jsonl', '--vocab_size=300')
    prepare('--input=a.jsonl', '--vocab_size=300', out='again')
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'again')
    _, _, other = prepare('--input=b.jsonl', '--tokenizer=out', out='other', tokenizer='gpt2')
    assert other['tokenizer_json'] == meta['tokenizer_json'] and other['vocab_size'] == 300
    tokenizer.check_same(other, meta, 320)
    prepare('--input=a.jsonl', out='chars')
    write(tmp_path / 'c.jsonl', ['what?!'])
    code, said = prepare('--input=c.jsonl', '--tokenizer=chars', out='more')
    assert code == 2 and "lacks the characters '!?'" in said


@pytest.mark.parametrize('unit', [64, 2**20])
def test_a_text_in_pieces_has_the_ids_of_the_whole(monkeypatch, unit):
    text = "it's  1234 \x1c\u3000 가나 \u2028 다 " * 50 + 'y' * 300 + '   '
    text += ''.join(' \n'[i % 2] * (i % 9) + '\n ' * (i % 4) + story for i, story in enumerate(STORIES))
    content = tokenizer.train_bpe([text], 400)
    known = [tokenizer.BPETokenizer(content)]
    if os.environ.get('TIKTOKEN_CACHE_DIR'):
        known.append(tokenizer.GPT2Tokenizer())
    monkeypatch.setattr(encoding, 'UNIT', unit)
    pieces = list(encoding.cut_up(text))
    assert ''.join(pieces) == text and (len(pieces) > 50) == (unit == 64)
    for one in known:
        assert np.concatenate(one.encode_corpus(pieces)).tolist() == one.encode_corpus([text])[0].tolist()


def test_the_number_of_cores_changes_nothing(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, 'UNIT', 1000)
    write(tmp_path / 'a.parquet', STORIES)
    for cores in (1, 7):
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)), raising=False)
        prepare('--input=a.parquet', '--vocab_size=300', out=f'{cores}')
    assert files_of(tmp_path / '1') == files_of(tmp_path / '7')


# instructions

INSTRUCTIONS = dict(columns=['q', 'a'], prompt='Q {q} A ',
                    to_parts=lambda row: [(f'Q {row["q"]} A ', False), (row['a'], True)])


def test_only_answers_count(prepare, tmp_path):
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'q': f'{i}?', 'a': f'yes {i}!'}) + '\n' for i in range(60)))
    train, val, meta = prepare('--input=a.jsonl', '--val_fraction=0.3', **INSTRUCTIONS)
    assert meta['prompt'] == 'Q {q} A '
    for split, ids in (('train', train), ('val', val)):
        mask = dataset.open_mask(str(tmp_path / 'out'), split)
        assert len(mask) == len(ids) and meta['sha256'][f'{split}_mask.bin']
        counted = ''.join(meta['chars'][i] if counts else '_' for i, counts in zip(ids, mask))
        whole = ''.join(meta['chars'][i] for i in ids)
        expected = ['_' * len(text[:text.index('A ') + 2]) + text[text.index('A ') + 2:]
                    for text in whole.split('\n\n')]
        assert counted == '\n\n'.join(expected) and 'yes' in counted and 'Q' not in counted
    # a dataset without masks that replaces it leaves no masks behind
    write(tmp_path / 'b.jsonl', STORIES)
    prepare('--input=b.jsonl')
    assert sorted(os.listdir(tmp_path / 'out')) == ['meta.json', 'train.bin', 'val.bin']


def test_a_few_instructions_give_each_split_some(prepare, tmp_path):
    """Thirty, of which none has a key below val_fraction, or all do; two are enough."""
    rows = [{'q': f'{i}?', 'a': f'yes {i}!'} for i in range(200)]

    def key(row):
        return documents.hash_of(f'Q {row["q"]} A \0{row["a"]}')
    for fraction, some in ((0.05, [row for row in rows if key(row) > 0.3][:30]),
                           (0.95, [row for row in rows if key(row) < 0.8][:30]), (0.05, rows[:2])):
        (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in some))
        train, val, meta = prepare('--input=a.jsonl', f'--val_fraction={fraction}', **INSTRUCTIONS)
        assert meta['documents']['train'] + meta['documents']['val'] == len(some)
        assert min(meta['documents'].values()) == 1
    (tmp_path / 'a.jsonl').write_text(json.dumps(rows[0]))
    code, said = prepare('--input=a.jsonl', **INSTRUCTIONS)
    assert code == 2 and '0 to validate; use more text' in said


def test_a_split_whose_answers_are_all_empty_is_too_little_text(prepare, tmp_path):
    for name, answer in (('a.jsonl', 'yes'), ('val.jsonl', '')):
        (tmp_path / name).write_text(json.dumps({'q': '1?', 'a': answer}))
    code, said = prepare('--input=a.jsonl', '--val_input=val.jsonl', **INSTRUCTIONS)
    assert code == 2 and 'too little text: 3 tokens to train on and 0 to validate' in said


def test_instructions_need_their_columns(prepare, tmp_path):
    (tmp_path / 'a.txt').write_text('text')
    assert 'a.txt is plain text; instructions and answers come in' in prepare('--input=.', **INSTRUCTIONS)[1]


# kills, full disks, two processes at once

DRIVER = '''
import os, sys, time
sys.path[:0] = [{root!r}, {data!r}]
from corpus import documents, encoding, pipeline, shards
documents.BLOCK, encoding.SHARD, encoding.UNIT = 1000, 4000, 500
def hold():
    print('held', flush=True)
    time.sleep({hang})
def write_manifest(self, original=shards.Shards.write_manifest):
    if self.manifest['shards'] == {hold_before}:
        hold()
    original(self)
    if self.manifest['shards'] == {hold_after} > 0:
        hold()
shards.Shards.write_manifest = write_manifest
if {hold_after} == 0:
    pipeline.tokenise = lambda *args: hold()
{more}
pipeline.prepare('unused', 'a corpus', tokenizer='char', val_fraction=0.1)
'''


@pytest.fixture
def driver(tmp_path):
    """
    driver(): start a prepare script with small blocks and shards; returns the process. It can be held after a number of
    shards, or before the next manifest is written, when that shard is on the disk only.
    """
    write_shards(tmp_path, 'jsonl')
    write(tmp_path / 'val.jsonl', STORIES[:100])
    started = []

    def start(hold_after=-1, more='', out='out', args=('--vocab_size=300',), hold_before=-1):
        script = DRIVER.format(root=ROOT, data=os.path.join(ROOT, 'data'), hang=HANG, hold_after=hold_after,
                               hold_before=hold_before, more=more)
        command = [sys.executable, '-c', script, '--input=[0-9].jsonl', f'--out={out}', *args]
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True))
        return started[-1]
    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def held(process):
    """What a process prints until it is held."""
    said = ''
    while 'held' not in said:
        line = process.stdout.readline()
        assert line, f'it ended: {said}'
        said += line
    return said


def ended(process):
    """The exit code of a process, and what it printed, once it has ended."""
    said = process.communicate()[0]
    return process.returncode, said


def kill(process):
    """Kill a process when it is held; returns what it printed."""
    said = held(process)
    process.kill()
    process.wait()
    return said


def progress(folder):
    """The manifest of the unfinished work in a folder, a dict."""
    manifest, = folder.glob('unfinished-*/manifest.json')
    return json.loads(manifest.read_text())


@pytest.mark.parametrize('args', [('--vocab_size=300',), slow(('--tokenizer=char', '--val_input=val.jsonl'))])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(driver, tmp_path, args):
    assert driver(out='whole', args=args).wait() == 0
    kept = None
    for shards, half in ((1, False), (3, True), (4, False), (4, True), (6, True), (7, False)):
        holds = dict(hold_before=shards + 1) if half else dict(hold_after=shards)
        said = kill(driver(args=args, **holds))
        assert kept is None or f'going on after {kept:,} characters' in said, 'no finished shard is repeated'
        assert progress(tmp_path / 'out')['shards'] == shards
        kept = progress(tmp_path / 'out')['last']['characters']
    code, said = ended(driver(args=args))
    assert f'going on after {kept:,}' in said and code == 0
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole')


def test_a_vocabulary_is_learned_once(driver):
    assert 'learning' in kill(driver(hold_after=0))
    code, said = ended(driver())
    assert 'learning' not in said and code == 0


@pytest.mark.slow
def test_other_settings_leave_unfinished_work_alone(driver, prepare, tmp_path):
    """A is killed, then B in the same folder; A goes on as if B had never run."""
    assert driver(out='whole').wait() == 0
    for args in (['--vocab_size=300'], ['--vocab_size=257']):
        kill(driver(1, args=args))
    assert prepare('--input=[0-9].jsonl', '--tokenizer=gtp2')[0] == 2
    code, said = ended(driver())
    assert 'going on after' in said and code == 0
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole')


@pytest.mark.parametrize('moves', [0, slow(1), slow(2), 3])
def test_killed_while_the_files_take_their_places(driver, tmp_path, moves):
    kill = f'''
replace, moved = os.replace, []
def once(source, target):
    if 'out/unfinished' in source and not source.endswith('.tmp'):
        if len(moved) == {moves}:
            os._exit(9)
        moved.append(target)
    replace(source, target)
os.replace = once
'''
    assert driver(out='whole').wait() == 0
    assert driver(args=['--tokenizer=char']).wait() == 0, 'an older dataset is in its place'
    assert driver(more=kill).wait() == 9
    assert not (tmp_path / 'out' / 'train.bin').exists(), 'it comes last, and shows that all is there'
    assert driver(more='pipeline.tokenise = None').wait() == 0, 'nothing is tokenised again'
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole')
    assert os.listdir(tmp_path / 'out') == os.listdir(tmp_path / 'whole')


def test_a_disk_that_fills_up_costs_no_finished_shard(driver, tmp_path):
    args = ['--tokenizer=char']
    assert driver(out='whole', args=args).wait() == 0
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))'
    code, said = ended(driver(more=limit, args=args))
    assert code == 2 and 'no room to write' in said and 'Traceback' not in said, said
    code, said = ended(driver(args=args))
    assert code == 0 and 'going on after' in said
    assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole')


def test_a_small_disk_is_named_before_any_work(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    code, said = prepare('--input=a.jsonl')
    assert code == 2 and 'the dataset needs about' in said and '0.0 GB free' in said
    assert not (tmp_path / 'out' / 'train.bin').exists()


def test_ctrl_c_keeps_what_is_finished(driver, tmp_path):
    process = driver(2)
    held(process)
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 75 and 'the same command goes on' in said and 'Traceback' not in said
    assert progress(tmp_path / 'out')['shards'] == 2


def test_two_at_once_do_not_write_into_each_other(driver, prepare):
    args = ['--tokenizer=char']
    held(driver(hold_after=0, args=args))
    code, said = prepare('--input=[0-9].jsonl', *args, val_fraction=0.1)
    assert code == 2 and 'another process is at work' in said


def test_a_dataset_is_made_once_and_anew_when_its_text_or_settings_change(prepare, tmp_path, capsys):
    prepare('--input=a.jsonl')
    made = os.stat(tmp_path / 'out' / 'train.bin').st_mtime_ns
    prepare('--input=a.jsonl')
    assert os.stat(tmp_path / 'out' / 'train.bin').st_mtime_ns == made
    assert 'has this dataset already' in capsys.readouterr().out
    for args in (['--input=a.jsonl', '--vocab_size=300'], ['--input=a.jsonl', '--val_fraction=0.2']):
        before = prepare(*args)[2]['made_from']
    write(tmp_path / 'a.jsonl', STORIES[:350])
    _, _, meta = prepare(*args)
    assert meta['made_from'] != before and sum(meta['documents'].values()) == 350


def test_a_dataset_that_is_not_whole_is_made_again(prepare, tmp_path):
    prepare('--input=a.jsonl', '--vocab_size=300')
    whole = files_of(tmp_path / 'out')
    for name in ('tokenizer.json', 'val.bin'):
        for spoil in (os.remove, lambda path: os.truncate(path, 100)):
            spoil(tmp_path / 'out' / name)
            prepare('--input=a.jsonl', '--vocab_size=300')
            assert files_of(tmp_path / 'out') == whole


def test_a_dataset_with_the_vocabulary_of_another_is_made_again_when_that_changes(prepare):
    for size in (300, 320):
        _, _, first = prepare('--input=a.jsonl', f'--vocab_size={size}', out='first')
        _, _, second = prepare('--input=a.jsonl', '--tokenizer=first', out='second')
        assert second['tokenizer_json'] == first['tokenizer_json'] and second['vocab_size'] == size


def test_other_files_in_the_folder_stay(prepare, tmp_path, capsys):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'thesis.txt').write_text('mine')
    (tmp_path / 'tokenizer.json').write_text('mine')
    prepare('--input=a.jsonl', out='.')
    assert (tmp_path / 'work' / 'thesis.txt').read_text() == (tmp_path / 'tokenizer.json').read_text() == 'mine'
    prepare('--input=a.jsonl', '--val_fraction=0.2', out='.')
    said = capsys.readouterr().out
    assert 'when it is done, this replaces the dataset in ., made of a.jsonl; --out=FOLDER keeps both' in said


# errors

def test_an_empty_file_is_no_document(prepare, tmp_path):
    write(tmp_path / 'a.jsonl', [*STORIES[:200], '', *STORIES[200:]])
    (tmp_path / 'empty.jsonl').write_text('')
    (tmp_path / 'empty.txt').write_text('')
    train, val, meta = prepare('--input', 'a.jsonl', 'empty.jsonl', 'empty.txt')
    assert sum(meta['documents'].values()) == 400 and meta['left_out'] == {'empty': 1, 'unusable': 0}
    write(tmp_path / 'empty.parquet', [])
    for args in (['--input=empty.txt'], ['--input=empty.parquet'], ['--input=empty.txt', '--vocab_size=300']):
        code, said = prepare(*args, out='nothing')
        assert code == 2 and 'too little text: 0 tokens' in said and 'train.bin' not in os.listdir(tmp_path / 'nothing')


def test_a_bad_row_stops_the_script_or_is_skipped(prepare, tmp_path, capsys):
    with open(tmp_path / 'a.jsonl', 'a') as f:
        f.write('{"text": "cut o')
    code, said = prepare('--input=a.jsonl')
    assert code == 2 and 'a.jsonl, line 401: not JSON' in said and '--skip_bad' in said
    train, val, meta = prepare('--input=a.jsonl', '--skip_bad')
    assert sum(meta['documents'].values()) == 400 and meta['left_out']['unusable'] == 1
    said = capsys.readouterr()
    assert 'left out: ' in said.out + said.err and 'left out: 1 unusable documents' in said.out


@pytest.mark.parametrize('characters', range(1, 6))
def test_a_text_of_a_few_characters_is_too_short_or_can_be_trained_on(prepare, tmp_path, characters, capsys):
    (tmp_path / 'b.txt').write_text('abcde'[:characters])
    made = prepare('--input=b.txt', '--val_fraction=0.5')
    if characters < 4:  # a split needs a token to predict, and one before it
        assert made[0] == 2 and 'too little text' in made[1]
    else:
        sizes = dataset.check(str(tmp_path / 'out'), made[2], block_size=1)
        assert f'--block_size={min(sizes.values()) - 1} ' in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_failure(tmp_path):
    write(tmp_path / 'a.jsonl', STORIES)
    script = os.path.join(ROOT, 'data', 'text', 'prepare.py')
    done = subprocess.run(f'"{sys.executable}" "{script}" --input=a.jsonl --tokenizer=char --out=out | head -n 1; '
                          'exit ${PIPESTATUS[0]}', shell=True, executable='/bin/bash', cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '' and len(ids_and_meta(tmp_path / 'out')) == 3


def test_what_a_remedy_for_too_little_text_says_works(prepare, tmp_path):
    write(tmp_path / 'same.jsonl', STORIES[:1] * 200)  # they all go the same way
    write(tmp_path / 'short.txt', STORIES[:1])
    for args, remedy in ((['--input=same.jsonl'], '--val_input=a.jsonl'),
                         (['--input=short.txt', '--val_fraction=1e-300'], '--val_fraction=0.1'),
                         (['--input=short.txt', '--fraction=1e-300'], '--fraction=1')):
        code, said = prepare(*args)
        assert code == 2 and 'too little text' in said and remedy.partition('=')[0] in said
        assert len(prepare(*args, remedy)) == 3


def test_a_folder_that_cannot_be_one_is_named_with_a_way_that_works(prepare, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'dangling').symlink_to('nowhere')
    for out in ('file', 'file/within', 'dangling', ''):
        code, said = prepare('--input=a.jsonl', out=out)
        assert code == 2 and f'--out={out!r}' in said and 'name' in said and said.count('\n') == 1
    assert (tmp_path / 'file').read_text() == 'mine' and not (tmp_path / 'nowhere').exists()
    (tmp_path / 'closed').mkdir()

    def mkdir(path, *args, original=os.mkdir):
        if 'closed/' in path:
            raise PermissionError(13, 'Permission denied', path)
        original(path, *args)
    monkeypatch.setattr(os, 'mkdir', mkdir)
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    for out in ('closed', 'closed/new'):
        code, said = prepare('--input=a.jsonl', out=out)
        assert code == 2 and f'--out={out} cannot be written to' in said and 'name another folder' in said


@pytest.mark.parametrize('args, complaint', [
    ([], 'name your text'), (['--input=none.txt'], "there is no 'none.txt'"),
    (['--input=.', '--vocab_size=20'], 'below 257'),
    (['--input=.', '--fraction=0'], 'fraction=0.0'), (['--source=hf://mine'], 'hf://datasets/OWNER/NAME'),
    (['--input=.', '--fraction=nan'], 'fraction=nan'), (['--input=.', '--fraction=-1'], 'fraction=-1.0'),
    (['--input=.', '--val_fraction=nan'], 'val_fraction=nan'),
    (['--input=.', '--val_fraction=-1'], 'val_fraction=-1.0'),
    (['--input=.', f'--vocab_size={10**30}'], 'is above 1048576'), (['--input=.', '--vocab_size=-1'], 'below 257'),
    (['--input=.', '--tokenizer='], '--tokenizer is empty'), (['--input=.', '--source=', '--out='], "--out=''"),
    (['--input=a.txt', '--tokenizer=gpt3'], '--tokenizer=gpt3 is neither'),
    (['--input=a.txt', '--tokenizer=a.txt'], '--tokenizer=a.txt is neither'),
    (['--input=a.txt', '--vocab_size=300', '--tokenizer=gpt2'], 'names one'),
    (['--input=a.txt', '--vocabsize=300'], 'unknown setting --vocabsize=300; did you mean vocab_size?'),
    (['--input=a.txt', '--vocab-size', '300'], 'unknown setting --vocab-size; did you mean vocab_size?'),
    (['--input=a.txt', '--norm=NFC'], 'unknown setting --norm=NFC; did you mean normalize?'),
    (['--input=a.txt', '-x'], 'unknown setting -x; '),
    (['--skip_bad', 'a.txt'], "'a.txt' belongs to no option; did you mean --input=a.txt?"),
    (['--input=a.txt', '--vocab_size=many'], "vocab_size expects int, as in --vocab_size=N, but got 'many'"),
    (['--input=a.txt', '--fraction=half'], "fraction expects float, as in --fraction=1.0, but got 'half'"),
    (['--input=a.txt', '--skip_bad=yes'], "skip_bad expects bool, as in --skip_bad=False, but got 'yes'"),
    (['--source=https://example.org/a.txt'], 'is an address; download it first'), (['--input=-'], 'is a stream')])
def test_a_wrong_command_line_says_what_is_right(prepare, tmp_path, args, complaint):
    (tmp_path / 'a.txt').write_text('text')
    code, said = prepare(*args)
    assert code == 2 and complaint in said and 'Traceback' not in said


@pytest.mark.parametrize('word, ours', [
    ('--file=a.txt', 'input'), ('--data', 'input'), ('--train_file=a', 'input'), ('--validation_file=a', 'val_input'),
    ('--output=x', 'out'), ('--output_dir', 'out'), ('--out-dir=x', 'out'), ('--vocab=300', 'vocab_size'),
    ('--val_ratio=0.1', 'val_fraction'), ('--test_size=0.1', 'val_fraction'), ('--text-column=a', 'text_key')])
def test_what_other_programs_call_an_option_leads_to_ours(prepare, word, ours):
    code, said = prepare(word)
    assert code == 2 and said.endswith(f'/prepare.py: unknown setting {word}; did you mean {ours}?\n')


@pytest.mark.parametrize('words, skips', [
    ([], False), (['--skip_bad'], True), (['--skip_bad=True'], True), (['--skip_bad', 'True'], True),
    (['--skip_bad=False'], False), (['--skip_bad', 'False'], False), (['--skip_bad', '--skip_bad=False'], False)])
def test_options_have_the_forms_that_they_have_in_train_py(words, skips):
    def parse(*words):
        with settings.command_line('prepare.py', *words):
            return vars(pipeline.parse('', None))
    expected = parse('--input=a', '--input=b', '--val_fraction=0.5') | {'skip_bad': skips}
    assert parse('--input', 'a', 'b', *words, '--val_fraction', '0.5') == expected


@pytest.mark.skipif(sys.platform != 'linux', reason="wants Linux' /proc")
def test_a_read_that_fails_is_not_taken_for_the_end_of_a_file():
    with pytest.raises(OSError, match='Input/output error'):
        list(encoding.chunks('/proc/self/mem', '<u2'))  # nothing is mapped at address 0


def test_check_finds_damage(prepare, tmp_path, capsys):
    prepare('--input=a.jsonl', '--vocab_size=300')
    inspection.check('out')
    said = capsys.readouterr().out
    assert 'the largest id is' in said and '"val_tokens"' in said and 'from token' in said
    content = bytearray((tmp_path / 'out' / 'val.bin').read_bytes())
    content[10:12] = (301).to_bytes(2, 'little')
    (tmp_path / 'out' / 'val.bin').write_bytes(content + b'\0\0')
    with pytest.raises(SystemExit) as stopped:
        inspection.check('out')
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and 'has the id 301, but vocab_size is 300' in said
    assert 'meta.json says' in said and 'val.bin does not have the sha256' in said
    (tmp_path / 'out' / 'tokenizer.json').write_text((tmp_path / 'out' / 'tokenizer.json').read_text() + ' ')
    with pytest.raises(ValueError, match='tokenizer.json does not have the sha256'):
        inspection.check('out')


def test_check_is_a_command(prepare, tmp_path):
    prepare('--input=a.jsonl')
    script = os.path.join(ROOT, 'data', 'corpus.py')
    done = python(script, 'check', 'out', cwd=tmp_path)
    assert done.returncode == 0 and 'from token' in done.stdout, done.stderr
    assert 'name a command, one of check, clean' in python(script, cwd=tmp_path).stderr
    assert 'no train.bin' in python(script, 'check', 'none', cwd=tmp_path).stderr


# the scripts

@pytest.mark.parametrize('name', sorted(name for name in os.listdir(os.path.join(ROOT, 'data'))
                                        if os.path.exists(os.path.join(ROOT, 'data', name, 'prepare.py'))))
def test_every_corpus_has_a_readme_and_lists_its_options(name, tmp_path):
    done = run_script(name, '--help', cwd=tmp_path)
    assert done.returncode == 0 and '--vocab_size' in done.stdout and f'python data/{name}/prepare.py' in done.stdout
    with open(os.path.join(ROOT, 'data', name, 'readme.md'), encoding='utf-8') as f:
        readme = f.read().lower()
    assert all(word in readme for word in ('source', 'licence', 'size', 'tokens', 'time'))


@needs_gpt2
def test_for_a_short_text_a_smaller_vocabulary_is_suggested(tmp_path):
    write(tmp_path / 'a.jsonl', STORIES)
    assert '--vocab_size=1024' in run_script('text', '--input=a.jsonl', '--out=large', cwd=tmp_path).stdout
    small = run_script('text', '--input=a.jsonl', '--vocab_size=300', '--out=small', cwd=tmp_path)
    assert small.returncode == 0 and '--vocab_size=1024' not in small.stdout


@pytest.mark.skipif(not os.path.exists(SHARED), reason='needs copies of tiny Shakespeare and The Verdict')
@pytest.mark.parametrize('name, text, counts', [
    ('shakespeare_char', 'tinyshakespeare.txt', (1003854, 111540)),
    pytest.param('shakespeare', 'tinyshakespeare.txt', (301966, 36059), marks=needs_gpt2),
    pytest.param('the_verdict', 'the-verdict.txt', (4612, 534), marks=needs_gpt2)])
def test_known_texts_give_the_known_counts(tmp_path, name, text, counts):
    shutil.copy(os.path.join(SHARED, text), tmp_path / 'input.txt')  # where a download would be
    done = run_script(name, f'--out={tmp_path}', cwd='/')
    assert done.returncode == 0 and 'another one' not in done.stdout, done.stderr
    assert 'to train on it: python train.py config/' in done.stdout
    train, val, meta = ids_and_meta(tmp_path)
    assert (len(train), len(val)) == counts and meta['vocab_size'] == (65 if name == 'shakespeare_char' else 50257)
    with open(tmp_path / 'input.txt', 'a') as f:
        f.write('more')
    assert 'so this is another one' in run_script(name, f'--out={tmp_path}', cwd='/').stdout


def test_pythons_documentation_may_have_links_to_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, 'prepare', lambda *args, **options: None)
    script = runpy.run_path(os.path.join(ROOT, 'data', 'pydoc_char', 'prepare.py'))
    (tmp_path / 'a.py').write_text('"""One."""')
    (tmp_path / 'sitecustomize.py').symlink_to('nowhere')
    assert [*script['documents'](str(tmp_path))] == ['One.']


@pytest.mark.slow
def test_pythons_documentation_is_a_corpus_that_needs_no_download(tmp_path):
    for part in ('data', 'common'):  # a copy, because its text is written beside the script
        shutil.copytree(os.path.join(ROOT, part), tmp_path / part,
                        ignore=shutil.ignore_patterns('*.bin', 'meta.json', 'input.txt', 'unfinished-*', '__pycache__'))
    done = python('data/pydoc_char/prepare.py', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train, val, meta = ids_and_meta(tmp_path / 'data' / 'pydoc_char')
    assert len(train) > 1_000_000 and 60 < meta['vocab_size'] < 200
    text = ''.join(meta['chars'][i] for i in train)
    assert 'Return' in text and min(text.count(char) for char in meta['chars']) > 20
