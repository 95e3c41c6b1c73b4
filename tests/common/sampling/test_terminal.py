"""The lines of a chat, as they come from a terminal and from a pipe."""
import io
import os
import subprocess
import sys

import pytest

from common.sampling import terminal
from conftest import slow
from person import PROMPT, Person
from running import ROOT

ECHO = f'''
import sys
sys.path.insert(0, {ROOT!r})
from common.sampling import terminal
terminal.take_utf8()
editor = terminal.LineEditor(['/help', '/temp'])
while (line := editor.read('\\n> ')) is not None:
    print('read', ascii(line), editor.history)
'''


@pytest.fixture
def editor(tmp_path):
    """editor(**env): a Person before a LineEditor that prints what it has read."""
    people = []

    def start(**env):
        people.append(Person([sys.executable, '-c', ECHO], tmp_path, env))
        people[-1].wait_for(PROMPT)
        return people[-1]
    yield start
    for one in people:
        one.end()


def enter(person, keys):
    """What is read after these keys and Enter."""
    person.press(f'{keys}\n')
    person.wait_for('read ')
    line = person.wait_for(PROMPT).rpartition(' ')[0]
    return eval(line)


@pytest.mark.parametrize('name, value', [('LC_ALL', 'C'), ('LC_ALL', 'xx_XX.UTF-8'), slow('LC_ALL', 'POSIX'),
                                         slow('LC_ALL', 'ko_KR.EUC-KR'), slow('LC_CTYPE', 'C'), slow('LANG', 'xx')])
def test_korean_is_typed_and_corrected_in_any_locale(editor, monkeypatch, name, value):
    for other in ('LC_ALL', 'LC_CTYPE', 'LANG'):
        monkeypatch.delenv(other, raising=False)
    one = editor(**{name: value})
    assert enter(one, '한글가\x7f나\x7f') == '한글' and enter(one, '한\x1b[D국') == '국한'


def test_lines_are_kept_from_one_chat_to_the_next(editor, tmp_path):
    first, second = editor(), editor()
    assert enter(first, '첫째') == '첫째' and enter(second, 'second') == 'second'
    first.leave('\x04')
    second.process.kill()  # as when a window is closed
    third = editor()
    assert enter(third, '\x1b[A') == 'second' and enter(third, '\x1b[A\x1b[A') == '첫째'
    path = tmp_path / 'state' / 'nanogpt' / 'chat_history'
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_the_history_stays_small(editor, tmp_path):
    path = tmp_path / 'state' / 'nanogpt' / 'chat_history'
    path.parent.mkdir(parents=True)
    path.write_text('old\n' * 5000)
    one = editor()
    assert enter(one, 'long ' * 500) == 'long ' * 500 and enter(one, 'short') == 'short'
    assert path.read_text() == 'old\n' * 999 + 'short\n'


@pytest.mark.parametrize('obstacle', ['file', slow('link'), slow('fifo'), slow('folder'), 'no place'])
def test_without_a_place_for_the_history_there_is_none(editor, tmp_path, monkeypatch, obstacle):
    env, folder = {}, tmp_path / 'state' / 'nanogpt'
    if obstacle in ('file', 'no place'):
        (tmp_path / 'state').write_text('mine')
    else:
        folder.mkdir(parents=True)
    if obstacle == 'link':
        os.symlink('/dev/null', folder / 'chat_history')
    elif obstacle == 'fifo':
        os.mkfifo(folder / 'chat_history')
    elif obstacle == 'folder':
        (folder / 'chat_history').mkdir()
    elif obstacle == 'no place':
        env = {'XDG_STATE_HOME': 'not/absolute', 'HOME': 'nowhere'}
    one = editor(**env)
    assert enter(one, 'a line') == 'a line' and enter(one, '\x1b[A') == 'a line'
    one.press('x\n')
    one.wait_for("read 'x' None")
    assert (tmp_path / 'state').is_dir() or (tmp_path / 'state').read_text() == 'mine'
    assert not (tmp_path / 'nowhere').exists() and not (tmp_path / 'not').exists()


def test_the_history_is_where_xdg_says(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('XDG_STATE_HOME', '/else')
    assert terminal.history_path() == '/else/nanogpt/chat_history'
    for value in ('', 'relative'):
        monkeypatch.setenv('XDG_STATE_HOME', value)
        assert terminal.history_path() == '/home/me/.local/state/nanogpt/chat_history'
    for value in ('', '/', 'relative'):
        monkeypatch.setenv('HOME', value)
        assert terminal.history_path() is None


def test_a_command_is_completed(editor):
    assert enter(editor(), '/he\t') == '/help'


def test_a_pipe_is_utf_8_and_has_no_history(tmp_path):
    lines = '\ufeff한글\r\n'.encode() + b'\xec\x95 half\nnext'
    env = {**os.environ, 'LC_ALL': 'C', 'XDG_STATE_HOME': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', ECHO], input=lines, cwd=tmp_path, env=env, stdout=subprocess.PIPE)
    assert done.stdout.decode().splitlines() == [f'read {ascii(line)} None' for line in
                                                 ('한글', '\udcec\udc95 half', 'next')]
    assert os.listdir(tmp_path) == []


def test_what_an_old_terminal_sends_is_read_in_its_encoding(monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO('한글'.encode('euc-kr') + b'\n\xff\xff\n')))
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), 'euc-kr'))
    terminal.take_utf8()
    editor = terminal.LineEditor([])
    assert [editor.read(''), editor.read(''), editor.read('')] == ['한글', '\udcff\udcff', None]


def test_an_input_that_is_closed_is_at_its_end(monkeypatch, capsys):
    closed = io.StringIO()
    editor = terminal.LineEditor([])
    closed.close()
    monkeypatch.setattr(sys, 'stdin', closed)
    assert editor.read('') is None and 'cannot be read' in capsys.readouterr().err
