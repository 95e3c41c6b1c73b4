"""What a user sees of a queue."""
import os

import pytest

from common import console
from common.experiments import status
from common.experiments.runs import Run, State


def lines(**runs):
    return list(status.status_lines(list(runs), runs))


def test_columns_are_aligned_for_names_of_wide_characters():
    header, *rows = lines(실험들=Run(state=State.FAILED, error='why'), ab=Run(state=State.FAILED, error='why'))
    assert [console.width(row.partition('why')[0]) for row in rows] == [21, 21] and header == 'name    state'


def test_a_running_one_has_its_process_its_gpus_and_its_start():
    running = Run(state=State.RUNNING, pid=os.getpid(), slot='0,1', started=0, max_iters=5)
    header, row, _ = lines(a=running, b=Run(out_dir='b'))
    assert header.split() == ['name', 'state', 'pid', 'GPU', 'started']
    assert row.split()[2:5] == [str(os.getpid()), '0,1', status.clock(0).split()[0]]
    assert lines(a=Run(state=State.RUNNING, started=1e17))[0].split() == ['name', 'state'], 'in no calendar'


def test_what_a_run_said_cannot_act_on_the_terminal():
    assert lines(a=Run(state=State.FAILED, error='\x1b[2Jx\ny\a'))[1].endswith(r'\x1b[2Jx y\x07')


def test_the_row_of_one_that_cannot_be_read_says_why_and_the_others_are_shown():
    rows = lines(a=Run(state=State.DONE, out_dir='x' * 300), b=Run(state=State.FAILED, error='why'))
    assert 'File name too long' in rows[1] and rows[2].endswith('why')


@pytest.fixture
def two_looks(monkeypatch):
    """Whoever sleeps the second time is interrupted."""
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr('time.sleep', sleep)
    monkeypatch.setattr(status, 'nobody_reads', lambda: False)
    return sleeps


@pytest.mark.parametrize('error', [None, ValueError('a mistake\nin it'), OSError('gone')])
def test_watch_shows_the_table_again_and_survives_a_moment_without_one(two_looks, capsys, error):
    def show():
        if error and not two_looks:
            raise error
        return ['name', f'look {len(two_looks)}']
    status.watch(show)
    assert capsys.readouterr().out == (f'{error}\n\n' if error else 'name\nlook 0\n\n') + 'name\nlook 1\n\n'
    assert two_looks == [2.0, 2.0]


def test_watch_redraws_in_place_on_a_terminal_and_within_it(two_looks, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    monkeypatch.setattr('shutil.get_terminal_size', lambda: os.terminal_size((80, 4)))
    status.watch(lambda: [str(i) for i in range(9)])
    screen = '\x1b[H0\x1b[K\n1\x1b[K\n2\x1b[K\n\x1b[J'
    assert capsys.readouterr().out == '\x1b[2J' + 2 * screen + '\n'


def test_watch_cuts_each_line_to_one_row_of_the_terminal(two_looks, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    monkeypatch.setattr('shutil.get_terminal_size', lambda: os.terminal_size((10, 4)))
    status.watch(lambda: ['x' * 30, '가' * 30])
    assert capsys.readouterr().out.startswith(f'\x1b[2J\x1b[H{"x" * 9}\x1b[K\n{"가" * 4}\x1b[K\n\x1b[J')


@pytest.mark.parametrize('last, expected', [(None, 'one\ntwo\nthree\n'), (2, 'two\nthree\n'), (0, ''),
                                            (9, 'one\ntwo\nthree\n')])
def test_a_log_is_shown_from_its_start_or_its_last_lines(tmp_path, capsys, last, expected):
    (tmp_path / 'log.txt').write_text('one\ntwo\nthree\n')
    status.show_log(tmp_path / 'log.txt', last, lambda: False)
    assert capsys.readouterr().out == expected


def test_a_log_cannot_act_on_the_terminal_and_shows_no_half_characters(tmp_path, capsys, monkeypatch):
    path, pieces = tmp_path / 'log.txt', [b'\x1b[2J 50%\r100%\r\n\xea', b'\xb0\x80\n', b'\xff\n']
    path.touch()
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    monkeypatch.setattr(status, 'nobody_reads', lambda: False)

    def goes_on():
        if pieces:
            with open(path, 'ab') as f:
                f.write(pieces.pop(0))
            return True
    status.show_log(path, None, goes_on)
    assert capsys.readouterr().out == '\\x1b[2J 50%\n100%\n가\n\\xff\n'
