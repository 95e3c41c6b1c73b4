"""Options: argparse with the configurator's dialect, the words of other tools, and the model that two settings name."""
import argparse
import os
import runpy
import sys

import pytest

import run_manager
from common import options, settings
from common.options import ELSEWHERE, Parser, find_model, hint
from corpus import pipeline
from running import ROOT
from test_house import CODE

SCRIPT = '''jobs = 1
share = 0.5
name = 'x'
dry_run = False
config_keys = ['jobs', 'share', 'name', 'dry_run']
exec(open({configurator!r}).read())
'''


def make_parser():
    parser = Parser(prog='script.py')
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--share', type=float, default=0.5)
    parser.add_argument('--name', default='x')
    parser.add_argument('--dry_run', action='store_true')
    return parser


def make_larger_parser():
    parser = make_parser()
    parser.add_argument('out_dir', nargs='*')
    parser.add_argument('-f', '--follow', action='store_true')
    parser.add_argument('-n', type=int, metavar='LINES')
    parser.add_argument('--launcher', choices=['local', 'slurm'], default='local')
    parser.add_argument('--input', nargs='+', action='extend')
    return parser


@pytest.mark.parametrize('words', [
    [], ['--dry_run'], ['--dry_run=True'], ['--dry_run', 'True'], ['--dry_run=False'], ['--dry_run', 'False'],
    ['--dry_run', '--dry_run=False'], ['--dry_run', 'False', '--dry_run'], ['--dry_run=true'], ['--dry_run=1'],
    ['--dry_run='], ['--dry_run', '--jobs=3'], ['--jobs=3'], ['--jobs', '3'], ['--jobs=3', '--jobs=4'], ['--jobs=two'],
    ['--jobs=1.5'], ['--jobs', 'two'], ['--jobs'], ['--jobs', '--dry_run'], ['--share=1'], ['--share', '1e-3'],
    ['--share=half'], ['--share'], ['--name=a=b'], ['--name', 'a b'], ['--name=-x'], ['--name='], ['--name'],
    ['--name', '--a --b'], ['--name', '--dry_run'],
    ['--dry-run'], ['--job=3'], ['--dry'], ['--jobs3'], ['-j', '3'], ['--n_jobs=3'], ['--num-workers=3'], ['-x'],
    ['--name.share=3'], ['--nothing=3'], ['--threads=3']])
def test_argparse_takes_and_refuses_what_the_configurator_does_in_the_same_words(words, tmp_path, capsys):
    (tmp_path / 'script.py').write_text(SCRIPT.format(configurator=os.path.join(ROOT, 'configurator.py')))
    try:
        expected = settings.read(str(tmp_path / 'script.py'), words)
    except ValueError as error:
        with pytest.raises(SystemExit) as stopped:
            make_parser().parse_args(words)
        said = capsys.readouterr().err.strip().partition(': ')[2]
        assert stopped.value.code == 2 and said == str(error).removesuffix(' (command line)')
    else:
        assert vars(make_parser().parse_args(words)) == expected


@pytest.mark.parametrize('first, others', [(first, others) for first, *others in [
    (['-f', '-n', '3'], ['-fn3'], ['-fn', '3'], ['-n=3', '-f=True'], ['-f', 'True', '-n3'], ['--follow', '-n', '3']),
    (['-n', '-1'], ['-n-1'], ['-n=-1']),
    (['--input', 'a', 'b'], ['--input=a', '--input=b'], ['--input=a', '--input', 'b']),
    (['--input', 'a', 'b', '--jobs=3'], ['--jobs', '3', '--input', 'a', 'b']),
    (['a', 'b', '--jobs=3'], ['--jobs', '3', 'a', 'b'], ['--jobs=3', '--', 'a', 'b']),
    (['--name=--time=1 --mem=2'], ['--name', '--time=1 --mem=2'])]])
def test_one_meaning_has_many_forms(first, others):
    expected = make_larger_parser().parse_args(first)
    assert all(make_larger_parser().parse_args(words) == expected for words in others)


@pytest.mark.parametrize('words, expected', [
    (['-n', 'two'], "n expects int, as in -n=LINES, but got 'two'"), (['-n'], '-n needs a value, as in -n=LINES'),
    (['--follow=yes'], "follow expects bool, as in --follow=False, but got 'yes'"),
    (['--launcher=ssh'], "unknown --launcher 'ssh'; there are local, slurm"),
    (['--out_dir=a*'], "unknown setting --out_dir=a*; it stands by itself, as in script.py 'a*'"),
    (['--input'], '--input needs a value, as in --input=INPUT'), (['--input', '--jobs=3'], '--input needs a value'),
    (['--input', 'a', '-x'], 'unknown setting -x; script.py --help lists them all'),
    (['-fx'], "ignored explicit argument 'x'"), (['-j'], 'unknown setting -j; did you mean jobs?')])
def test_a_mistake_is_one_line_and_exit_code_2(words, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_larger_parser().parse_args(words)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and expected in said and said.count('\n') == 1


def test_a_word_that_no_option_takes_is_named_with_the_option_for_it(capsys):
    for option, advice in ((None, ''), ('--input', "; did you mean '--input=a b'?")):
        parser = make_parser()
        parser.loose = option
        with pytest.raises(SystemExit):
            parser.parse_args(['--dry_run', 'a b'])
        assert f"'a b' belongs to no option{advice} (script.py --help lists" in capsys.readouterr().err


def make_parser_with_commands():
    parser = Parser(prog='script.py')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    commands.add_parser('run').add_argument('--dry_run', action='store_true')
    add = commands.add_parser('add')
    add.add_argument('--list')
    add.add_argument('--lines')
    add.add_argument('words', nargs=argparse.REMAINDER)
    return parser


@pytest.mark.parametrize('words, expected', [
    ([], 'name a command, one of run, add'), (['rnu'], "unknown command 'rnu'; did you mean run?"),
    (['zzz'], "unknown command 'zzz'; there are run, add"),
    (['--dry_run', 'run'], 'unknown setting --dry_run; script.py --help'),
    (['run', '--dry-run'], 'unknown setting --dry-run; did you mean dry_run?'),
    (['run', '-x'], 'unknown setting -x; script.py run --help lists them all'),
    (['run', 'x'], "'x' belongs to no option"), (['add', '--lst=x', 'a'], 'did you mean list?')])
def test_commands_are_answered_in_the_same_way(words, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_parser_with_commands().parse_args(words)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and expected in said and said.count('\n') == 1


@pytest.mark.parametrize('rest', [
    ['a:', '--dry_run', 'False', '--list=x', '-x', '--help', '--', '--a=b c'], ['a:', '--li=3'],
    ['--', '--dry_run=True', '-h'], ['a']])
def test_what_follows_the_first_word_of_a_line_passes_untouched(rest):
    for before in ([], ['--list=mine'], ['--list', 'mine']):
        found = make_parser_with_commands().parse_args(['add', *before, *rest])
        assert found.words == rest and found.list == (before and 'mine' or None)


@pytest.mark.parametrize('words', [['--help'], ['-h'], ['--jobs=3', '-h'], ['--nothing', '--help']])
def test_help_is_shown_whatever_else_is_there(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(words)
    assert stopped.value.code == 0 and '--dry_run' in capsys.readouterr().out


@pytest.fixture
def all_options(monkeypatch):
    """{script, or script and command: the names of its options}, of all scripts."""
    found = {name: list(settings.read(os.path.join(ROOT, name)))
             for name in ('train.py', 'sample.py', 'evaluate.py', 'bench.py', 'export.py')}
    refused = []

    def refuse(word, known, otherwise):
        refused.append(known)
        return ''
    monkeypatch.setattr(options, 'hint', refuse)
    monkeypatch.setattr(sys, 'stderr', open(os.devnull, 'w'))

    def options_of(name, function, *command):
        monkeypatch.setattr(sys, 'argv', ['script.py', *command, '--nothing', 'x'])
        with pytest.raises(SystemExit):
            function()
        found[name] = refused.pop()
    options_of('prepare.py', lambda: pipeline.parse('', None))
    options_of('corpus.py', lambda: runpy.run_path(os.path.join(ROOT, 'data', 'corpus.py')), 'clean')
    for command in ('run', 'status', 'logs', 'stop', 'retry', 'add', 'remove', 'repair', 'report', 'curve'):
        options_of(f'run_manager.py {command}', run_manager.parse_command_line, command)
    return found


def test_each_word_of_another_tool_leads_to_an_option_in_some_script(all_options):
    for theirs, ours, note in ELSEWHERE:
        answer = f'; did you mean {" or ".join(ours.split())}?' if ours else '; there is no such setting:'
        for word in theirs.split():
            assert any(hint(f'--{word}', known, '').startswith(answer) and note in hint(word, known, '')
                       for known in all_options.values() if word not in known), word


def test_all_parsers_of_the_project_are_of_one_dialect():
    for path in CODE:
        if path != 'common/options.py':
            with open(os.path.join(ROOT, path), encoding='utf-8') as f:
                assert 'ArgumentParser(' not in f.read(), path


def test_a_model_is_named_by_init_from_and_a_run_by_out_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'a run').mkdir()
    (tmp_path / 'a run' / 'ckpt.pt').touch()
    (tmp_path / 'model.safetensors').touch()
    assert find_model('resume', 'out') == 'out' and find_model('gpt2', 'none') == 'gpt2'
    for name, advice in (('a run/ckpt.pt', "did you mean '--init_from=a run/ckpt.pt'?"), ('none', 'there is out'),
                         ('model.safetensors', 'did you mean --init_from=model.safetensors?'),
                         ('gpt2-xl', 'did you mean --init_from=gpt2-xl?'), ('none.pt', 'there is out'),
                         ('openai-community/gpt2', 'did you mean --init_from=openai-community/gpt2?')):
        with pytest.raises(ValueError) as error:
            find_model('resume', name, otherwise='there is out')
        assert str(error.value) == f'no folder {name!r} with a trained model here; {advice}'
    with pytest.raises(ValueError, match='did you mean init_from=gpt2[?]$'):  # in harness.py's model_args
        find_model('resume', 'gpt2', dashes='')
