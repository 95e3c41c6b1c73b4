"""What a dataset says of itself, and the check of it: each damage is a line, and what cannot be shown is no damage."""
import json
import os
import shlex

import pytest

from common import tokenizer
from common.console import exit_on_error
from corpus import inspection
from running import ROOT, python
from test_documents import write
from test_pipeline import STORIES, files_of, prepare  # noqa: a fixture


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def spoil(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def set_in_meta(**values):
    def change(folder):
        meta = json.loads((folder / 'meta.json').read_bytes())
        (folder / 'meta.json').write_text(json.dumps({**meta, **values}))
    return change


DAMAGE = {
    'a byte too few': (lambda folder: cut(folder / 'val.bin'), 'val.bin has'),
    'no tokens': (spoil('train.bin', b''), 'train.bin has no tokens'),
    'half a token': (spoil('train.bin', b'\0'), 'train.bin has 1 bytes'),
    'no bins': (lambda folder: os.remove(folder / 'train.bin'), 'has no train.bin'),
    'a mask without entries': (spoil('val_mask.bin', b''), 'val_mask.bin has 0 entries'),
    'no JSON': (spoil('meta.json', b'{"tok'), 'meta.json is damaged'),
    'no UTF-8': (spoil('meta.json', b'\xff'), 'meta.json is damaged'),
    'a list': (spoil('meta.json', b'[]'), 'meta.json is damaged'),
    'a number': (spoil('meta.json', b'12'), 'meta.json is damaged'),
    'null': (spoil('meta.json', b'null'), 'meta.json is damaged'),
    'an empty dict': (spoil('meta.json', b'{}'), 'meta.json is damaged'),
    'a size that is text': (set_in_meta(vocab_size='28'), ''),
    'a size that is null': (set_in_meta(vocab_size=None), ''),
    'chars that are a number': (set_in_meta(chars=5), ''),
    'too few chars': (set_in_meta(chars='ab'), ''),
    'an unknown tokenizer': (set_in_meta(tokenizer='wordpiece'), 'wordpiece'),
    'a dtype of no ids': (set_in_meta(dtype='float64'), 'float64'),
    'an unknown dtype': (set_in_meta(dtype='uint17'), 'uint17'),
    'hashes that are a number': (set_in_meta(sha256=5), ''),
    'a hash that is a number': (set_in_meta(sha256={'train.bin': 5}), 'train.bin does not have the sha256'),
    'a number of tokens that is text': (set_in_meta(val_tokens='many'), ''),
    'nesting': (spoil('meta.json', b'{"a":' * 500 + b'1' + b'}' * 500), 'meta.json is damaged'),
}


@pytest.mark.parametrize('what', DAMAGE)
def test_each_damage_is_a_line_and_neither_check_nor_prepare_gives_up(prepare, tmp_path, what, capsys):
    spoil, complaint = DAMAGE[what]
    prepare('--input=a.jsonl')
    whole = files_of(tmp_path / 'out')
    spoil(tmp_path / 'out')
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped, exit_on_error():
        inspection.check('out')
    said = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and complaint in said, said
    prepare('--input=a.jsonl')
    if what != 'a mask without entries':  # a file of its own, which the dataset does not list
        assert files_of(tmp_path / 'out') == whole


@pytest.mark.parametrize('key, value', [
    ('scored', [1]), ('scored', {'val': 3}), ('scored', {'val': {'tokens': 'x', 'bytes': None}}), ('documents', []),
    ('documents', {'train': 'x', 'val': []}), ('left_out', {'empty': {}}), ('split', 5), ('source', {'a': 1}),
    ('characters', 'x'), ('train_documents_in_val', None), ('made_from', 3), ('sha256', {'': 'x', '../a.jsonl': None}),
    ('prompt', 5), ('documents', json.loads('{"a":' * 400 + '1' + '}' * 400))])
def test_a_value_of_the_wrong_kind_is_named_by_check(prepare, key, value, tmp_path, capsys):
    prepare('--input=a.jsonl')
    set_in_meta(**{key: value})(tmp_path / 'out')
    with pytest.raises(SystemExit) as stopped, exit_on_error():
        inspection.check('out')
    said = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and (key in said or key == 'sha256' and "Is a directory: 'out/'" in said)


def test_figures_that_are_no_figures_are_named_with_what_to_do(prepare, tmp_path):
    prepare('--input=a.jsonl')
    whole = files_of(tmp_path / 'out')
    for values in (dict(characters=None), dict(documents=[]), dict(left_out=3), dict(split=None), dict(documents={}),
                   dict(documents={'train': 1, 'val': 'x'}), dict(left_out={'empty': []}),
                   dict(train_documents_in_val='x')):
        set_in_meta(**values)(tmp_path / 'out')
        code, said = prepare('--input=a.jsonl')
        assert code == 2 and f"see its '{next(iter(values))}" in said and 'delete that file and run the same' in said
        os.remove(tmp_path / 'out' / 'meta.json')
        prepare('--input=a.jsonl')
        assert files_of(tmp_path / 'out') == whole


def test_what_cannot_be_shown_is_no_damage(prepare, tmp_path, monkeypatch, capsys):
    def offline(meta):
        raise ValueError("cannot fetch GPT-2's vocabulary")
    prepare('--input=a.jsonl')
    monkeypatch.setattr(tokenizer, 'from_meta', offline)
    assert len(prepare('--input=a.jsonl')) == 3, 'not a failure'
    inspection.check('out')
    said = capsys.readouterr().out
    assert said.count("(not shown: cannot fetch GPT-2's vocabulary)") == 2 and 'everything is as meta.json says' in said


def test_the_printed_command_finds_the_dataset_wherever_it_is_pasted(prepare, tmp_path, capsys):
    prepare('--input=a.jsonl', out="it's mine")
    folder = str(tmp_path / "it's mine")
    *_, last = capsys.readouterr().out.strip().splitlines()
    command = shlex.split(last.removeprefix('to train on it: '))
    assert f'--dataset={folder}' in command and "--out_dir=out-it's mine" in command and command[0] == 'python'


def test_a_folder_is_found_by_its_name_its_path_and_from_home(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write(tmp_path / 'val.jsonl', STORIES[:9])
    prepare('--input=a.jsonl', '--val_input=~/val.jsonl')
    script = os.path.join(ROOT, 'data', 'corpus.py')
    done = python(script, 'check', '~/out', cwd='/', HOME=str(tmp_path))
    assert done.returncode == 0 and 'everything is as meta.json says' in done.stdout, done.stderr
    *_, meta = prepare('--source=~/a.jsonl', '--tokenizer=~/out', out='other')
    assert meta['chars'] and len(STORIES) == sum(meta['documents'].values())
    assert python(script, 'check', '', cwd='/').returncode == 2


def test_what_is_shown_of_a_text_acts_on_no_terminal_and_has_no_replacement_character(prepare, tmp_path, capsys):
    text = '\x1b]0;title\x07\x1b[2J \x9b31m \ufffd 가'
    write(tmp_path / 'a.jsonl', [f'{text} {i}' for i in range(200)])
    for args in ([], ['--vocab_size=300']):
        prepare('--input=a.jsonl', *args)
        inspection.check('out')
    shown = capsys.readouterr().out
    (tmp_path / 'b.jsonl').write_text(json.dumps({'\x1b[2J': 1}) + '\n')
    code, said = prepare('--input=b.jsonl', out='other')
    assert code == 2 and r'\x1b[2J' in said and r'\x1b' in shown and r'\ufffd' in shown and '가' in shown
    assert not {*'\x1b\x07\x9b\ufffd'} & {*shown, *said}
