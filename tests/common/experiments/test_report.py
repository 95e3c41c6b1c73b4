"""The report's table, for people and for programs, on hand-made runs, and the files that the command writes."""
import csv
import io
import json
import math
import os
import statistics
import types

import pytest

from common.experiments import records, report
from made_runs import make_run, read, runs, scored  # noqa: a fixture
from running import ok


def test_the_table_says_what_came_out_and_what_differs(runs):
    columns = report.table_columns(read(runs))
    assert columns['run'] == ['slow', 'fast', 'fast-2 (not done)', 'fast (2 seeds): mean ± std (not done)']
    assert columns['best val loss'] == ['2.0000', '1.0000', '1.5000', '1.2500 ± 0.3536']
    assert columns['perplexity'][1] == '2.72' and 'bits per byte' not in columns
    assert columns['parameters'][0] == '0.80M' and columns['accuracy'] == ['50.0%'] * 4
    assert records.differing(read(runs)) == {'n_layer': [2, 4, 4]}, 'neither seeds nor folders'
    lines = list(report.table(read(runs)))
    assert len(lines) == 5 and len({line.index('0.80M') for line in lines[1:]}) == 1
    assert lines[1].endswith('100') and lines[2].endswith('n_layer=4')


def test_the_time_to_a_target_lies_between_two_evaluations(runs):
    columns = report.table_columns(read(runs), target=2.5)
    assert columns['time to 2.5'] == ['15s (1.00x)', '1s (0.05x)', '1s (0.07x)', '1s ± 0s (0.06x)']
    assert columns['tokens to 2.5'] == ['1,500 (1.00x)', '750 (0.50x)', '1,000 (0.67x)', '875 ± 177 (0.58x)']
    assert 'without evaluations and saves' in ' '.join(report.remarks(read(runs), 2.5))


def test_a_target_that_gives_no_time_says_why(runs):
    columns = report.table_columns(read(runs), target=1.2)
    assert columns['time to 1.2'] == ['missed by 0.8000', '2s', 'missed by 0.3000', '1 of 2 reached it']
    assert columns['tokens to 1.2'] == ['-', '1,800', '-', '-']
    columns = report.table_columns(read(runs), target=4.2)
    assert columns['time to 4.2'] == ['before the first step'] * 4 and columns['tokens to 4.2'] == ['-'] * 4


def test_losses_of_different_vocabularies_have_bits_per_byte_and_no_ratios(tmp_path):
    folders = [make_run(tmp_path / 'char', [6.0, 2.0], data=scored(), bytes_per_token=1.0),
               make_run(tmp_path / 'bpe', [8.0, 4.0], data=scored('bpe', 4096, 'b'), bytes_per_token=4.0)]
    columns = report.table_columns(read(folders), target=5.0)
    assert columns['bits per byte'] == ['2.0000', '1.0000'] and columns['tokens to 5'] == ['250', '750']
    remarks = ' '.join(report.remarks(read(folders), 5.0))
    assert 'not the same loss' in remarks and 'compare bits per byte only' in remarks


def two_seeds(place, name, low, high, **settings):
    """Folders of two runs that differ in their seed only, with these best losses."""
    return [make_run(place / f'{name}-{seed}', [20.0, loss], seed=seed, **settings)
            for seed, loss in enumerate((low, high))]


AGAINST = 'val loss against the first group'


def test_groups_are_compared_with_the_first_one_by_welchs_t_test(tmp_path):
    folders = [*two_seeds(tmp_path, 'a', 1.0, 1.2), make_run(tmp_path / 'single', [20.0, 3.0], n_layer=3),
               *two_seeds(tmp_path, 'b', 0.6, 0.8, n_layer=4), *two_seeds(tmp_path, 'far', 11.0, 11.2, n_layer=5)]
    # of two pairs with equal deviations t has 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2), with t^2 = 8 for b
    texts = ['-'] * 5 + ['-'] * 2 + ['-', '-0.4000 (p=0.11)', '+10.0000 (p<0.001)']
    columns = report.table_columns(read(folders), target=2.5)
    assert columns[AGAINST] == texts and columns['run'][-2] == 'b-0 (2 seeds): mean ± std'
    assert any('p=0.11' in line for line in report.table(read(folders)))
    assert [AGAINST, texts, False] in report.content(read(folders), [], None)['columns'], 'the page'
    assert "Welch's t-test" in ' '.join(report.remarks(read(folders), None))
    groups = json.loads(report.as_json(read(folders), []))['groups']
    assert [group['best_val_loss_difference'] for group in groups] == [None, pytest.approx(-0.4), pytest.approx(10.0)]
    assert [group['p_value'] for group in groups] == [None, pytest.approx(1 - math.sqrt(0.8), rel=1e-9),
                                                      pytest.approx(1 - math.sqrt(5000 / 5002), rel=1e-9)]
    rows = list(csv.DictReader(report.as_csv(read(folders)).splitlines()))
    assert [bool(row['p_value']) for row in rows] == [bool(row['best_val_loss_difference']) for row in rows] == [
        text != '-' for text in texts]


def test_the_size_of_each_group_counts_in_its_comparison(tmp_path):
    groups = [3.0, 4.0, 1.0, 2.1], [490.2, 340.0, 433.9]  # p by R, as in test_welch.py
    folders = [make_run(tmp_path / f'{name}{seed}', [1000.0, loss], n_layer=name, seed=seed)
               for name, losses in enumerate(groups) for seed, loss in enumerate(losses)]
    assert report.rows_of(read(folders))[-1].p_value == pytest.approx(0.0107515611497845)
    assert report.table_columns(read(folders))[AGAINST][-1].endswith(' (p=0.011)')


def test_only_groups_with_known_losses_of_one_text_are_compared(runs, tmp_path):
    def compared(*folders):
        found = read(folders)
        said = 't-test' in ' '.join(report.remarks(found, None))
        column = report.table_columns(found).get(AGAINST)
        assert said == (column is not None)
        return column and column[len(folders):]

    a = two_seeds(tmp_path, 'a', 1.0, 1.2, data=scored())
    other_text = two_seeds(tmp_path, 'b', 0.6, 0.8, data=scored(val='b'))
    c = two_seeds(tmp_path, 'c', 0.6, 0.8, data=scored(), n_layer=4)
    unknown = [make_run(tmp_path / f'd-{seed}', losses, seed=seed, done=False, data=scored(), n_layer=5)
               for seed, losses in enumerate(([20.0, 1.0], []))]
    assert compared(*runs) is None, 'one group'
    assert compared(*a, *other_text) is None and compared(*a, *unknown) is None and compared(*unknown, *a) is None
    assert compared(*a, *other_text, *unknown, *c) == ['-', '-', '-', '-0.4000 (p=0.11)']
    same = [make_run(tmp_path / f'same-{n}-{seed}', [20.0, 1.0 + n], seed=seed, data=scored(), n_layer=6 + n)
            for n in range(2) for seed in range(2)]
    assert compared(*same) == ['-', '+1.0000'], 'copies of one run say nothing of chance'
    at_work = [make_run(tmp_path / f'e-{seed}', [20.0, 0.5 + seed], seed=seed, done=False, data=scored(), n_layer=9)
               for seed in range(2)]
    assert compared(*a, *at_work) is None


def test_programs_get_each_run_and_group_in_full_precision(tmp_path):
    losses = [1 / 3, 2 / 7]
    folders = [make_run(tmp_path / f'a-{i}', [4.0, loss], seed=i, dataset='a,"b"\n') for i, loss in enumerate(losses)]
    folders += [make_run(tmp_path / 'b', [1000.0], dataset='b')]
    table = read(folders)
    as_json = json.loads(report.as_json(table, ['x'], 2.0), parse_constant=pytest.fail)
    assert [run['best_val_loss'] for run in as_json['runs']] == [*losses, 1000.0]
    assert as_json['groups'][0]['best_val_loss'] == statistics.mean(losses)
    assert as_json['groups'][0]['best_val_loss_std'] == statistics.stdev(losses)
    assert as_json['runs'][0]['tokens_to_target'] == pytest.approx(1000 * 2 / (4 - 1 / 3))
    assert as_json['runs'][2]['perplexity'] is None and as_json['notes'] == ['x']
    rows = list(csv.DictReader(report.as_csv(table, 2.0).splitlines()))
    assert [row['name'] for row in rows] == ['a-0', 'a-1', 'b', 'a-0 (2 seeds)'], 'no group of one'
    assert [row['group'] for row in rows[:3]] == ['a-0 (2 seeds)', 'a-0 (2 seeds)', 'b']
    assert float(rows[1]['best_val_loss']) == 2 / 7 and rows[0]['settings.dataset'] == 'a,"b"\\n'
    assert rows[2]['remark'] == 'missed by 998.0000' and not rows[2]['tokens_to_target']


def test_the_tables_for_programs_are_files_or_alone_on_stdout(run, runs, tmp_path):
    done = ok(run('run_manager.py', 'report', *runs, '--csv=-', '--json=other.json'))
    assert done.stderr == 'wrote other.json\n' and json.loads((tmp_path / 'other.json').read_text())['runs']
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row['name'] for row in rows] == ['slow', 'fast', 'fast-2', 'fast (2 seeds)']
    assert not list(tmp_path.glob('report*'))
    (tmp_path / 'vl_convert.py').write_text('raise ModuleNotFoundError("gone", name="vl_convert")')
    done = run('run_manager.py', 'report', *runs, '--csv=new/x.csv', '--json=x.json', PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and 'the package vl_convert is not installed' in done.stderr and 'n_layer' in done.stdout
    assert (tmp_path / 'new' / 'x.csv').read_text().count('\n') == 5 and json.loads((tmp_path / 'x.json').read_text())


@pytest.mark.parametrize('options, expected', [
    (dict(out=''), "--out='' names no file"), (dict(out='there/'), "--out='there/' names no file"),
    (dict(out='file/x'), 'is a file, not a folder'), (dict(out='link/x'), 'link is a link to'),
    (dict(out='taken'), 'taken.html is a folder'), (dict(out='x' * 300), 'File name too long'),
    (dict(csv=''), "--csv='' names no file"), (dict(csv='taken.html'), 'taken.html is a folder'),
    (dict(json='/dev/null'), '/dev/null is no regular file'), (dict(csv='x', json='./x'), 'names the same file'),
    (dict(csv='report.html'), 'names the same file'), (dict(csv='-', json='-'), '- is stdout'),
    (dict(csv='-', serve=True), '- is stdout'), (dict(serve=True, port=70000), '--port=70000: .*0-65535'),
    (dict(json='results/q.json'), 'a queue may use'), (dict(json='results/New.JSON'), 'a queue may use'),
    (dict(csv='q.conf'), 'the list of experiments'), (dict(csv='link.jsonl'), 'the run in this folder may use'),
    (dict(json='results/a/settings.json'), 'the run in this folder may use'),
    (dict(csv='results/a/samples/iter_000000.txt'), 'the run in this folder may use'),
    (dict(target=float('nan')), '--target=nan is no loss')])
def test_options_that_cannot_be_followed_are_refused_at_once(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to('gone')
    (tmp_path / 'taken.html').mkdir()
    make_run(tmp_path / 'results' / 'a', [2.0])
    (tmp_path / 'link.jsonl').symlink_to('results/a/metrics.jsonl')
    usual = dict(target=None, out='report', csv=None, json=None, serve=False, port=0, list='q.conf')
    with pytest.raises((ValueError, OSError), match=expected):
        report.check_options(types.SimpleNamespace(**usual | options))
    assert sorted(os.listdir()) == ['file', 'link', 'link.jsonl', 'results', 'taken.html']
    report.check_options(types.SimpleNamespace(
        **usual | dict(out='results/a/report', csv='results/a/x.csv', json='results/a/x.json')))


def test_a_terminal_without_the_sign_for_a_deviation_gets_another_one(runs, monkeypatch):
    for encoding, sign in (('utf-8', '±'), ('ascii', '+-')):
        monkeypatch.setattr('sys.stdout', io.TextIOWrapper(io.BytesIO(), encoding))
        lines = report.terminal_text(read(runs), None).splitlines()
        assert sign in lines[4] and lines[4].index('50.0%') == lines[1].index('50.0%')


def test_a_report_writes_a_table_a_page_and_a_picture(run, runs, tmp_path):
    pytest.importorskip('vl_convert')
    pytest.importorskip('matplotlib')
    (tmp_path / 'slow' / 'settings.json').write_text('[1]')
    done = ok(run('run_manager.py', 'report', *runs, '--target=2.5'))
    assert 'time to 2.5' in done.stdout and 'wrote report.html and report.png' in done.stdout
    assert done.stderr == f'{tmp_path}/slow/settings.json left out: not a JSON object\n'
    assert (tmp_path / 'report.png').read_bytes().startswith(b'\x89PNG')
    missing = run('run_manager.py', 'report', runs[0], 'nowhere')
    assert missing.returncode == 2 and 'no metrics.jsonl in nowhere' in missing.stderr


def test_a_home_folder_in_a_path_is_meant_and_a_new_folder_is_made(run, runs, tmp_path):
    (tmp_path / 'vl_convert.py').write_text('def javascript_bundle(): return ""')
    (tmp_path / 'matplotlib.py').write_text('raise ModuleNotFoundError("gone", name="matplotlib")')
    done = run('run_manager.py', 'report', '~/slow', '--out=~/new/er/x', HOME=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert 'the package matplotlib is not installed' in done.stderr and (tmp_path / 'new' / 'er' / 'x.html').exists()
