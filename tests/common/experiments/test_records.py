"""What is read of a run's folder, whatever else lies in it, and which runs can be compared."""
import json
import os
from pathlib import Path

import pytest

from common.experiments import page, records, report
from made_runs import make_run, runs, scored  # noqa: a fixture


def test_what_is_half_written_or_foreign_is_left_out_and_named(runs):
    Path(runs[0], 'settings.json').write_text('{"n_layer"')
    samples = Path(runs[0], 'samples')
    (samples / 'iter_old.txt').write_text('notes')
    (samples / 'iter_000200.txt.tmp').write_text('half')
    (samples / 'iter_000000.txt').write_bytes(b'ROM\xff')
    (samples / 'iter_000300.txt').mkdir()
    os.mkfifo(samples / 'iter_000400.txt')
    Path(runs[1], 'settings.json').unlink()
    read, notes = records.read_all(runs)
    assert read[0].settings == {} and sorted(read[0].samples) == [0, 100, 200]
    assert read[0].samples[0] == ['ROM\\xff'], 'no U+FFFD'
    assert [line.partition(': ')[0].removesuffix(' left out') for line in notes] == [
        f'{runs[0]}/settings.json', *(f'{runs[0]}/samples/iter_{name}.txt' for name in ('000000', '000300', '000400')),
        f'{runs[0]}/samples', f'{runs[1]}/settings.json']
    assert notes[-2].endswith('samples: iter_old.txt left out: not from train.py')
    assert report.table_columns(read)['parameters'][0] == '-'


@pytest.mark.parametrize('settings', [
    '[1]', '{}', '5', 'null', '{"parameters": "many", "n_layer": {"a": [1]}}', '\xff', '[' * 100_000, '{"data": [1]}',
    '{"dataset": "\\udcff", "parameters": NaN, "x": -1e999, "y": NaN}',
    '{"data": {"val_sha256": [2], "tokenizer": {}, "vocab_size": "x"}}'])
def test_damaged_files_are_shown_as_far_as_they_are_whole(runs, settings):
    damage = ['12', 'null', '[1]', '{"a": 1}', '{"iter": 0, "val_loss": 1.0}', '{"iter": 0, "loss": 0.5}', '{"iter": 3',
              '{"iter": 100, "val_loss": 0.1, "tokens": "1", "train_s": 1.0}', '\udcff\0\0', '"val_loss"',
              '{"iter": 100, "val_loss": NaN, "tokens": 1, "train_s": 1.0}',
              '{"iter": 1, "done": true, "val_loss": 2.0}', '{"iter": 1, "stopped": true, "loss": 2.0, "tokens": 5}',
              '{"iter": 1e400, "loss": 1}']
    metrics = Path(runs[0], 'metrics.jsonl')
    text = metrics.read_text()
    metrics.write_bytes('\n'.join([*damage, text, *damage]).encode(errors='surrogateescape'))
    Path(runs[0], 'settings.json').write_bytes(settings.encode('latin-1'))
    read, notes = records.read_all(runs)
    columns = report.table_columns(read, target=2.5)
    assert columns['best val loss'][0] == '2.0000' and columns['time to 2.5'][0] == '15s (1.00x)'
    assert columns['parameters'][0] == '-' and columns['run'][0] == 'slow' and columns['tokens'][0] == '2,010'
    assert f'{runs[0]}/metrics.jsonl: 27 of 34 lines left out: damaged, or not from train.py' in notes
    assert len(list(report.table(read))) == 5
    assert 'slow' in json.dumps(page.content(read, columns, notes), allow_nan=False)
    assert 'slow' in report.as_csv(read, 2.5)
    assert json.loads(report.as_json(read, notes, 2.5), parse_constant=pytest.fail)['runs'][0]['name'] == 'slow'
    assert [len(curve['iterations']) for curve in page.curves(read) if curve['label'] == 'slow'] == [3, 3]


def test_a_run_of_train_py_is_read_whole(trained):
    read, notes = records.read_all([trained])
    assert notes == [] and read[0].done and len(read[0].steps) == 20 and len(read[0].evaluations) == 3
    assert read[0].data and report.table_columns(read)['bits per byte'] != ['-']


def test_lines_of_several_runs_in_one_file_are_sorted_and_said(runs):
    path = Path(runs[0], 'metrics.jsonl')
    path.write_text(''.join(reversed(path.read_text().splitlines(keepends=True))))
    read, notes = records.read_all(runs[:1])
    assert [line['iter'] for line in read[0].evaluations] == [0, 100, 200]
    assert notes == [f'{path}: iterations go back, as in a mixture of runs; sorted by iteration']


def test_a_folder_that_is_named_twice_is_one_run(runs, tmp_path):
    (tmp_path / 'link').symlink_to(runs[0])
    assert len(records.read_all([runs[0], f'{runs[0]}/.', os.path.relpath(runs[0]), str(tmp_path / 'link')])[0]) == 1


def test_settings_that_are_not_known_do_not_differ(runs):
    Path(runs[0], 'settings.json').unlink()
    assert records.differing(records.read_all(runs)[0]) == {}
    runs.append(make_run(Path(runs[0]).with_name('other'), [2.0], n_layer=7))
    lines = list(report.table(records.read_all(runs)[0]))
    assert lines[0].endswith('differs from fast by') and lines[1].endswith('not known')
    assert lines[4].endswith('n_layer=7')


def test_a_run_without_settings_or_losses_is_shown_as_far_as_it_is_known(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('')
    read = records.read_all([str(tmp_path)])[0]
    columns = report.table_columns(read, target=1.0)
    assert columns['best val loss'] == ['-'] and columns['time to 1'] == ['no evaluation']
    assert page.content(read, columns, [])['curves'][0]['values'] == {}


@pytest.mark.parametrize('damage', [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to(path),
                                    lambda path: None])
def test_a_run_that_cannot_be_read_now_is_left_out_with_a_line(runs, damage):
    path = Path(runs[0], 'metrics.jsonl')
    path.unlink()
    damage(path)
    read, notes = records.read_all(runs)
    assert [run.name for run in read] == ['fast', 'fast-2']
    assert len(notes) == 1 and notes[0].startswith(runs[0]) and 'metrics.jsonl' in notes[0]


def test_runs_of_one_name_and_from_other_weights_are_kept_apart(tmp_path):
    folders = [make_run(tmp_path / 'old' / 'muon', [2.0], init_from='scratch'),
               make_run(tmp_path / 'new' / 'muon', [1.0], init_from='gpt2')]
    read = records.read_all(folders)[0]
    assert [run.name for run in read] == folders and len(records.groups(read)) == 2
    assert records.differing(read) == {'init_from': ['scratch', 'gpt2']}


def test_a_seed_that_was_resumed_or_does_not_know_its_bytes_stays_with_the_others(tmp_path):
    different = [dict(init_from='auto'), dict(init_from='resume'), dict(data=scored(val_bytes=None)), {}]
    read = records.read_all([make_run(tmp_path / str(seed), [2.0], seed=seed,
                                      **{'init_from': 'scratch', 'data': scored(), **one})
                             for seed, one in enumerate(different)])[0]
    assert list(records.groups(read)) == ['0 (4 seeds)']
    assert records.differing(read) == {} and records.comparability(read) == []


def test_only_runs_of_different_seeds_are_called_seeds(tmp_path):
    folders = [make_run(tmp_path / str(i), [2.0], seed=seed, n_layer=i // 2) for i, seed in enumerate([1, 2, 1, 1])]
    assert list(records.groups(records.read_all(folders)[0])) == ['0 (2 seeds)', '2 (2 runs)']


CHAR, BPE = scored(), scored('bpe', 4096, 'b')


@pytest.mark.parametrize('data, expected', [
    ([CHAR, CHAR], []),
    ([CHAR, BPE], ['one text in different vocabularies (char of 65 in 0; bpe of 4,096 in 1): compare bits per byte '
                   'only, not losses, perplexities or accuracies']),
    ([CHAR, {**BPE, 'val_bytes': 999}], ['different validation texts']),
    ([CHAR, {**BPE, 'val_bytes': None}], ['different validation texts']),
    ([scored(val_bytes=None), {**BPE, 'val_bytes': None}], ['different validation texts']),
    ([CHAR, scored(val='c')], ['different validation texts']),
    ([CHAR, CHAR, BPE, scored(val='c')], ['different validation texts']),
    ([CHAR, scored(val_bytes=None), BPE], ['one text in different vocabularies (char of 65 in 0, 1; bpe']),
    ([CHAR, scored('\x1b', None, 'b')], ['one text in different vocabularies (char of 65 in 0; \\x1b in 1)']),
    ([CHAR, None], ['not known what was scored in 1:']),
    ([CHAR, scored(val=None)], ['not known what was scored in 1:']),
    ([CHAR, BPE, None], ['one text', 'not known what was scored in 2:']),
    ([None] * 6, ['not known what was scored in 0, 1, 2, 3 and 2 more:']),
    ([None], [])])
def test_the_report_says_which_figures_can_be_compared(tmp_path, data, expected):
    folders = [make_run(tmp_path / str(i), [2.0], **({'data': one} if one else {})) for i, one in enumerate(data)]
    said = records.comparability(records.read_all(folders)[0])
    assert len(said) == len(expected) and all(line.startswith(start) for line, start in zip(said, expected)), said


def test_different_data_are_a_short_label(tmp_path):
    read = records.read_all([make_run(tmp_path / 'a', [2.0], data=CHAR), make_run(tmp_path / 'b', [1.0], data=BPE),
                             make_run(tmp_path / 'c', [1.0])])[0]
    assert records.differing(read) == {'data': ['char:65:aaaaaa', 'bpe:4096:bbbbbb', None]}
    lines = list(report.table(read))
    assert lines[2].endswith(' data=bpe:4096:bbbbbb') and lines[3].endswith(' data=not known')
    assert records.differing([read[0], read[2]]) == {} and len(records.groups(read)) == 3


def test_names_and_settings_of_any_characters_are_one_line_each(tmp_path):
    name = '한글\x1b[2J\n\udcff'
    read = records.read_all([make_run(tmp_path / 'a', [2.0], dataset='x'),
                             make_run(tmp_path / name, [1.0], dataset='y\x1b\n' + 'z' * 300)])[0]
    lines = list(report.table(read))
    assert read[1].name == '한글\\x1b[2J\\n\\udcff' and len(lines) == 3 and len(lines[2]) < 250
    assert json.dumps(page.content(read, report.table_columns(read), [])).isascii()
    assert not any('\x1b' in line or '\n' in line for line in lines)
    assert '\x1b' not in report.as_csv(read) + report.as_json(read, [])


def test_one_experiment_with_one_seed_twice_is_said():
    def run(name, seed):
        return records.Record(name, name, {'seed': seed, 'n_layer': 2}, [], [], True, {})
    runs = [run('a', 1), run('b', 2), run('c', 1)]
    assert list(records.twins(runs)) == ['a, c are one experiment with one seed, and the mean counts each of them']
    assert list(records.twins(runs[:2])) == []
