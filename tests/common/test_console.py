"""Output that cannot be written is dropped, and never ends a run."""
import fcntl
import itertools
import math
import json
import os
import struct
import subprocess
import sys
import termios
import time

import pytest

from common import console
from running import ROOT

BEGIN = f'''
import os, sys
sys.path.insert(0, {ROOT!r})
from common.console import protect_output, stop
protect_output()
'''


def start(code, cwd, **options):
    """A new Python, without torch, that runs the code once its output is protected."""
    return subprocess.Popen([sys.executable, '-c', BEGIN + code], cwd=cwd, **options)


def finish(code, cwd, **options):
    """Run start() to its end: (exit code, stdout, stderr), the last two as text if they are pipes."""
    process = start(code, cwd, **{'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options})
    out, err = process.communicate()
    return process.returncode, *(text if text is None else text.decode() for text in (out, err))


WORK = '''
for i in range(1000):
    print(i, 'a line')
print('a piece', end='')
with open('result', 'w') as f:
    f.write('done')
'''


@pytest.fixture
def works(tmp_path):
    """works(stdout=..., ...): whether a script does its work and ends well, whatever its output is; its stderr."""
    def works(code=WORK, **options):
        status, _, err = finish(code, tmp_path, **options)
        assert status == 0 and (tmp_path / 'result').read_text() == 'done', err
        return err
    return works


def test_what_is_printed_arrives_whole_and_in_order(tmp_path):
    code = "print('one'); print('two', file=sys.stderr); print('three', end=''); sys.stdout.write('four')"
    assert finish(code, tmp_path, stderr=subprocess.STDOUT) == (0, 'one\ntwo\nthreefour', None)


def test_a_line_is_written_at_once_even_to_a_file(tmp_path):
    with open(tmp_path / 'log', 'wb') as log:
        finish("print('a line'); os._exit(0)", tmp_path, stdout=log)
    assert (tmp_path / 'log').read_text() == 'a line\n'


def test_a_full_disk_costs_the_output_and_one_line_says_so(works):
    with open('/dev/full', 'wb') as full:
        assert works(stdout=full) == '-c: output is lost from here on (No space left on device)\n'
        works(stdout=full, stderr=full)
        works(WORK.replace("'a line'", "'a line', file=sys.stderr"), stderr=full)


def test_a_log_at_its_size_limit_costs_the_output_and_one_line_says_so(works, tmp_path):
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\n'
    with open(tmp_path / 'log', 'wb') as log:
        assert works(limit + WORK, stdout=log) == '-c: output is lost from here on (File too large)\n'
    assert (tmp_path / 'log').read_text() == ''.join(f'{i} a line\n' for i in range(6))[:50]


def test_a_pipe_that_nobody_reads_is_no_error(works):
    for stderr in (subprocess.PIPE, subprocess.STDOUT):
        reader, writer = os.pipe()
        os.close(reader)
        assert not works(stdout=writer, stderr=stderr)
        os.close(writer)


def test_a_terminal_that_goes_away_costs_the_output_only(tmp_path):
    terminal, end = os.openpty()
    code = "print('ready'); sys.stdin.readline()\n" + WORK.replace("'a line')", "'a line'); print(i, file=sys.stderr)")
    process = start(code, tmp_path, stdin=subprocess.PIPE, stdout=end, stderr=end)
    os.close(end)
    assert os.read(terminal, 5) == b'ready'
    os.close(terminal)
    process.communicate(b'\n')
    assert process.returncode == 0 and (tmp_path / 'result').read_text() == 'done'


@pytest.mark.parametrize('closed', [closed for n in range(4) for closed in itertools.combinations(range(3), n)])
def test_closed_streams_are_nobody_elses(tmp_path, closed):
    """A file that is opened must not take the number of one: what is printed would land in it."""
    code = '''
with open('result', 'w') as f:
    number = f.fileno()
    print('printed')
    print('printed', file=sys.stderr)
    os.write(1, b'written\\n')
    os.write(2, b'written\\n')
    f.write(f'read {sys.stdin.read()!r}, {number > 2}')
'''
    def close():
        for number in closed:
            os.close(number)
    status, *texts = finish(code, tmp_path, stdin=subprocess.DEVNULL, preexec_fn=close)
    assert status == 0 and (tmp_path / 'result').read_text() == "read '', True"
    assert texts == ['' if number in closed else 'printed\nwritten\n' for number in (1, 2)]


@pytest.mark.parametrize('encoding, expected', [
    ('ascii:strict', '\\xe9 \\uac00 \\udcff'), ('latin1', '\xe9 \\uac00 \\udcff'), ('utf-8', '\xe9 \uac00 \\udcff')])
def test_a_character_that_the_terminal_does_not_know_becomes_an_escape(tmp_path, encoding, expected):
    process = start(r"for file in (sys.stdout, sys.stderr): print('\xe9 \uac00 \udcff', file=file)", tmp_path,
                    env={**os.environ, 'PYTHONIOENCODING': encoding}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    texts = [text.decode(encoding.partition(':')[0]) for text in process.communicate()]
    assert texts == [f'{expected}\n'] * 2 and process.returncode == 0


LONG = 300_000  # characters, of which a pipe holds 65,536


def wait_until_full(pipe):
    """Wait until a pipe has as many bytes as it holds."""
    holds = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    while struct.unpack('i', fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0] < holds:
        time.sleep(0.01)


def test_a_signal_handler_may_print_while_a_line_is_being_printed(tmp_path):
    code = f"""
import signal
signal.signal(signal.SIGTERM, lambda *args: print('told'))
print('x' * {LONG})
print('end')
"""
    process = start(code, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until_full(process.stdout)
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == 0 and err == b'' and out.count(b'x') == LONG and b'told\n' in out
    assert out.endswith(b'end\n')


def test_a_slow_reader_of_a_pipe_that_does_not_wait_gets_all(tmp_path):
    process = start(f"os.set_blocking(1, False); print('x' * {LONG}); print('end')", tmp_path, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
    wait_until_full(process.stdout)
    out, err = process.communicate()
    assert process.returncode == 0 and err == b'' and out == b'x' * LONG + b'\nend\n'


def test_what_a_test_or_a_notebook_put_in_place_of_stdout_stays(capsys):
    before = sys.stdout, sys.stderr
    console.protect_output()
    assert (sys.stdout, sys.stderr) == before


def test_protected_twice_is_protected_once(works):
    twice = 'before = sys.stdout, sys.stderr; protect_output(); assert before == (sys.stdout, sys.stderr)'
    assert works(twice + WORK) == ''


# the end with a message

def test_a_mistake_ends_with_one_line_and_its_exit_code(tmp_path):
    assert finish("stop('no such file')", tmp_path) == (2, '', '-c: no such file\n')
    assert finish("stop('no such file', 75)", tmp_path)[0] == 75
    with open('/dev/full', 'wb') as full:
        assert finish("stop('no such file')", tmp_path, stderr=full)[0] == 2
    assert finish("stop('no such file')", tmp_path, preexec_fn=lambda: os.close(2)) == (2, '', '')


@pytest.mark.parametrize('environment, expected', [
    (dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='4'), ': wrong'),
    (dict(RANK='3', LOCAL_RANK='1', WORLD_SIZE='4'), ' (rank 3): wrong'),
    (dict(LOCAL_RANK='1'), ': wrong')])  # left over from another program
def test_the_rank_that_sees_a_mistake_is_named_and_lets_the_first_speak(monkeypatch, capsys, environment, expected):
    waited = []
    monkeypatch.setattr(console.time, 'sleep', waited.append)
    for key in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as ended:
        console.stop('wrong')
    assert ended.value.code == 2 and capsys.readouterr().err.endswith(f'{expected}\n')
    assert waited == ([console.OTHERS_FAIL] if 'rank' in expected else [])


@pytest.mark.parametrize('error', [ValueError('why'), FileNotFoundError('why'), PermissionError('why')])
def test_a_users_mistake_is_a_line_and_a_fault_of_ours_a_traceback(capsys, error):
    with pytest.raises(SystemExit), console.exit_on_error():
        raise error
    assert capsys.readouterr().err.endswith(': why\n')
    with pytest.raises(KeyError), console.exit_on_error():
        raise KeyError('why')


def test_what_all_ranks_know_is_said_once(monkeypatch, capsys):
    for rank in ('', '0', '1', '10'):
        monkeypatch.setenv('RANK', rank)
        console.say(f'rank {rank}')
    assert capsys.readouterr() == ('', 'rank \nrank 0\n')


def test_torchrun_is_told_the_mistake_for_its_last_lines(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'error.json'))
    with pytest.raises(SystemExit):
        console.stop('wrong')
    told = json.loads((tmp_path / 'error.json').read_text())
    assert told['message'].endswith(': wrong') and int(told['extraInfo']['timestamp']) > 0


def test_a_text_from_elsewhere_cannot_command_the_terminal():
    assert console.visible('a\x1b]0;title\x07\x1b[2J\x9b5m\x00\x7f') == (
        'a\\x1b]0;title\\x07\\x1b[2J\\x9b5m\\x00\\x7f')
    assert console.visible('one\n\ttwo\r\nthree\rfour 한국어 é') == 'one\n\ttwo\nthree\\rfour 한국어 é'


@pytest.mark.parametrize('text, columns', [('abc', 3), ('한국어', 6), ('👩‍🔬', 2), ('é', 1), ('', 0)])
def test_columns_are_aligned_whatever_the_characters(text, columns):
    assert console.pad(text, 8) == text + ' ' * (8 - columns)
    assert console.pad(text, 0) == text


def test_the_columns_of_a_table_are_aligned_whatever_the_characters():
    rows = [('a', 'é', 'end'), ('한글 실험', 'b', ''), ('x', '', 'y')]
    assert list(console.table(rows)) == ['a          é  end', '한글 실험  b', 'x             y']


def test_bits_per_byte_are_those_of_the_loss():
    assert console.bits_per_byte(math.log(2), 0.5) == pytest.approx(2.0)
    assert console.bits_per_byte(1.0, None) is None and math.isnan(console.bits_per_byte(math.nan, 2.0))


@pytest.mark.parametrize('script', ['train.py', 'sample.py', 'bench.py', 'export.py', 'data/text/prepare.py'])
def test_a_missing_package_is_one_line(script, tmp_path):
    """In a Python that has none, as before `pip install`."""
    done = subprocess.run([sys.executable, '-S', os.path.join(ROOT, script), *['--input=x'] * ('data' in script)],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'pip install -r requirements.txt' in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
