"""Claims are measured in order, within their time, once; whatever ends that keeps what is there."""
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from unittest.mock import Mock

import pytest
import torch

from common import cpu, files, processes
from common.benchmark import claims, claims_table, ledger
from common.benchmark.ledger import Claim, Failed
from running import HANG, ROOT, hook, python

CPU = {'machine': 'a CPU of this test, 2 cores', 'cores': 2, 'threads': 2, 'device': 'cpu', 'torch': '2.13.0',
       'driver': None, 'gb': 0, 'gpus': 0, 'bfloat16': False}
GPU = dict(CPU, machine='a GPU of this test, 16 GB', device='cuda', gb=16, gpus=1, driver='550.1')


def claim(name, figure=1.5, **options):
    """A Claim that notes its name in `claim.seen` and gives this figure, or raises it."""
    def measure(bench, command):
        claim.seen.append(name)
        if isinstance(figure, BaseException):
            raise figure
        return {'x': figure}, f'{figure} of {name}', '1 to 2'
    return Claim(name, f'what {name} is', f'python {name}.py', measure, **{'cpu': 1, 'gpu': 1, **options})


@pytest.fixture(autouse=True)
def nothing_seen():
    claim.seen = []


@pytest.fixture
def bench(tmp_path):
    return ledger.Bench(ROOT, str(tmp_path / 'bench'), 'cpu')


@pytest.fixture
def run(bench, tmp_path, capsys):
    """run(claims, ...): ledger.run() into tmp_path/claims.jsonl; returns (whether all went well, what it printed)."""
    def run(rows, only='', here=CPU, minutes=30):
        good = ledger.run(rows, ledger.chosen(rows, only), bench, here, minutes, str(tmp_path / 'claims.jsonl'))
        return good, capsys.readouterr().out
    return run


def lines(tmp_path):
    return claims_table.read(tmp_path / 'claims.jsonl')


def test_claims_are_measured_in_their_order_and_once(run, tmp_path):
    rows = [claim('b'), claim('a'), claim('c')]
    good, out = run(rows[:2])
    assert good and claim.seen == ['b', 'a'] and '1 of 2: b (about 1m00s)' in out and '1.5 of b (1 to 2)' in out
    good, out = run(rows)
    assert good and claim.seen == ['b', 'a', 'c'] and '1 claim to measure, 2 are done' in out
    assert 'send' in out.splitlines()[-1] and 'CONTRIBUTING.md' in out.splitlines()[-1]
    assert '0 claims to measure, 1 is done, 0 cannot' in run(rows[:1])[1]
    first = lines(tmp_path)[0]
    assert first['claim'] == 'b' and first['figure'] == {'x': 1.5} and first['spread'] == '1 to 2'
    assert {'machine', 'cores', 'threads', 'device', 'torch', 'driver', 'date', 'seconds', 'command'} <= set(first)
    assert '1.5 of c (1 to 2)' in (tmp_path / 'claims.md').read_text()


@pytest.mark.parametrize('change', [dict(torch='2.14.0'), dict(machine='another')])
def test_what_was_measured_elsewhere_is_measured_again(run, change):
    run([claim('a')])
    run([claim('a')], here={**CPU, **change})
    assert claim.seen == ['a', 'a']


def test_a_claim_whose_command_has_changed_is_measured_again(run):
    run([claim('a')])
    changed = claim('a')
    changed.command += ' --more'
    run([changed])
    run([changed])
    assert claim.seen == ['a', 'a']


def test_what_does_not_fit_into_the_minutes_is_left_for_the_next_call(run):
    rows = [claim('short', cpu=1), claim('long', cpu=19.5), claim('last', cpu=1.5)]
    good, out = run(rows, minutes=2)
    assert good and claim.seen == ['short', 'last']
    assert 'left for the next call: long (needs --minutes=20 at least)' in out
    good, out = run(rows, minutes=19.5)
    assert claim.seen == ['short', 'last', 'long'] and 'left' not in out


def test_the_minutes_are_kept(run, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(ledger, 'time', Mock(monotonic=lambda: clock[0], perf_counter=lambda: clock[0]))
    rows = [claim(name, cpu=2) for name in 'abcd']
    for row in rows:
        def measure(bench, command, measure=row.measure):
            clock[0] += 125  # five seconds more than expected
            return measure(bench, command)
        row.measure = measure
    good, out = run(rows, minutes=4)
    assert claim.seen == ['a'] and 'left for the next call: b (2m00s), c (2m00s), d (2m00s)' in out
    run(rows, minutes=4.2)
    assert claim.seen == ['a', 'b', 'c']


def test_a_slow_machine_takes_its_pace_from_three_claims_on(run, monkeypatch, bench):
    clock = [1000.0]
    monkeypatch.setattr(ledger, 'time', Mock(monotonic=lambda: clock[0], perf_counter=lambda: clock[0]))
    rows = [claim(name) for name in 'abcde']
    for row, minutes in zip(rows, (3, 2, 4, 1, 1)):
        def measure(bench, command, measure=row.measure, minutes=minutes):
            clock[0] += 60 * minutes
            return measure(bench, command)
        row.measure = measure
    _, out = run(rows[:4])
    assert '3 of 4: c (about 1m00s)' in out and '4 of 4: d (about 3m00s)' in out
    _, out = run(rows, minutes=2)  # the paces are 3, 2, 4 and 1
    assert claim.seen == [*'abcd'] and 'e (needs --minutes=3 at least)' in out
    begun = Mock()
    monkeypatch.setattr(bench, 'begin', begun)
    run(rows, here=dict(CPU, torch='2.14.0'))  # the same machine
    assert begun.call_args_list[0].args[0] == pytest.approx(ledger.PATIENCE * 2.5 + 1)
    _, out = run(rows, here=dict(CPU, machine='another'))
    assert '1 of 5: a (about 1m00s)' in out


def test_what_failed_before_comes_last(run):
    run([claim('a', Failed('no')), claim('b')])
    claim.seen = []
    run([claim('a'), claim('c'), claim('d')])
    assert claim.seen == ['c', 'd', 'a']


@pytest.mark.parametrize('error, said', [(Failed('out of memory'), 'failed: out of memory'),
                                         (KeyError('tok_s'), "failed: KeyError: 'tok_s'")])
def test_a_claim_that_fails_is_noted_and_tried_again_and_the_others_go_on(run, tmp_path, error, said):
    good, out = run([claim('a', error), claim('b')])
    assert not good and claim.seen == ['a', 'b'] and said in out and said in (tmp_path / 'claims.md').read_text()
    good, _ = run([claim('a'), claim('b')])
    assert good and claim.seen == ['a', 'b', 'a'] and 'failed' not in (tmp_path / 'claims.md').read_text()


def test_ctrl_c_keeps_what_is_there(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run([claim('a'), claim('b', KeyboardInterrupt()), claim('c')])
    assert [line['claim'] for line in lines(tmp_path)] == ['a'] and '1.5 of a' in (tmp_path / 'claims.md').read_text()


def test_a_line_that_was_cut_off_costs_itself_alone(run, tmp_path):
    run([claim('a'), claim('b')])
    path = tmp_path / 'claims.jsonl'
    path.write_bytes(path.read_bytes()[:-40])
    run([claim('a'), claim('b')])
    assert claim.seen == ['a', 'b', 'b'] and [line['claim'] for line in lines(tmp_path)] == ['a', 'b']


def test_a_file_of_something_else_is_refused(run, tmp_path):
    (tmp_path / 'claims.jsonl').write_text('{"tok_s": 5}\n')
    with pytest.raises(ValueError, match='no measurements'):
        run([claim('a')])


def test_lines_of_something_else_are_left_out_and_counted(run, tmp_path, capsys):
    run([claim('a')])
    path = tmp_path / 'claims.jsonl'
    line = json.loads(path.read_text())
    others = [7, 'x', [line], {'tok_s': 5}, dict(line, machine=None), dict(line, torch=2.13), dict(line, claim=['a']),
              {key: value for key, value in line.items() if key != 'text'}]
    path.write_text('\ufeff' + '\n'.join(map(json.dumps, [line, *others])) + '\n', encoding='utf-8')
    assert claims_table.read(path) == [line] and 'no measurement, 8 lines' in capsys.readouterr().out
    run([claim('a'), claim('b')])
    assert claim.seen == ['a', 'b']


@pytest.mark.parametrize('name, expected', [('Tesla V100-SXM2-16GB', 'Tesla V100-SXM2-16GB'),
                                            ('Tesla T4', 'Tesla T4, 16 GB')])
def test_a_machine_is_named_by_its_gpu_or_by_what_its_cpu_can(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: name)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: Mock(total_memory=15.8e9))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: False)
    monkeypatch.setattr(ledger.readiness, 'driver', lambda: ledger.readiness.Row('ok', 'driver', '550.1: the last'))
    about = ledger.machine('cuda')
    assert (about['machine'], about['driver'], about['gb'], about['gpus']) == (expected, '550.1', 16, 2)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    assert re.fullmatch(r'\S.* \((AVX2 only|limited to AVX2(, but not MKL)?)\), (\d+ threads? of )?\d+ cores?', ledger.machine('cpu')['machine'])


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity') or sys.platform != 'linux', reason='/proc/cpuinfo')
@pytest.mark.parametrize('name, flags, mkl, expected', [
    ('AMD EPYC', 'fma avx2', '', 'AMD EPYC family 25 model 17 (AVX2 only)'),
    ('AMD EPYC 9B14 96-Core Processor', 'fma avx2 avx512f', '', 'AMD EPYC 9B14 (limited to AVX2, but not MKL)'),
    ('AMD EPYC 9B14 96-Core Processor', 'fma avx2 avx512f', 'AVX2', 'AMD EPYC 9B14 (limited to AVX2)')])
def test_a_cpu_with_a_vague_name_is_told_from_others_and_so_are_its_threads(monkeypatch, tmp_path, name, flags, mkl,
                                                                            expected):
    monkeypatch.setenv('MKL_ENABLE_INSTRUCTIONS', mkl)
    info = (f'processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\nstepping\t: 1\n'
            f'flags\t\t: {flags}\n\n')
    (tmp_path / 'cpuinfo').write_text(info + info.replace('17', '99'))
    monkeypatch.setattr(cpu, 'open', lambda path, *args, **options: open(tmp_path / 'cpuinfo', *args, **options),
                        raising=False)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1})
    monkeypatch.setattr(torch, '__version__', '2.13.0+cpu')
    for threads, said in ((1, '1 thread of 2 cores'), (2, '2 cores')):
        monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
        about = ledger.machine('cpu')
        assert (about['machine'], about['threads']) == (f'{expected}, {said}', threads)
        assert about['torch'] == '2.13.0'


def test_only_takes_the_claims_that_it_names_and_knows_similar_names(run):
    rows = [claim('roofline'), claim('check'), claim('sweep')]
    run(rows, only='sweep,roofline')
    assert claim.seen == ['roofline', 'sweep']
    with pytest.raises(ValueError, match="only='rofline' is no claim; did you mean roofline"):
        run(rows, only='check,rofline')
    with pytest.raises(ValueError, match='--list'):
        run(rows, only='xyz')
    with pytest.raises(ValueError, match='names no claim'):
        run(rows, only=' , ')
    run(rows, only=' check, ,')
    assert claim.seen == ['roofline', 'sweep', 'check']


def test_a_claim_that_was_named_and_cannot_be_measured_says_why_at_once(run):
    _, out = run([claim('a', cpu=0), claim('b'), claim('c', cpu=0)], only='a,b')
    assert 'a: needs a GPU\n' in out and 'c: needs' not in out and '--list' not in out


@pytest.mark.parametrize('here, options, reason', [
    (CPU, dict(cpu=0), 'needs a GPU'), (GPU, dict(gpu=0), 'is about a CPU'), (GPU, dict(gb=24), 'a GPU of 24 GB'),
    (GPU, dict(gpus=2), 'needs 2 GPUs'), (GPU, dict(needs='bfloat16'), 'a device with bfloat16'),
    (CPU, dict(needs='shakespeare'), '--input=FILE'), (CPU, dict(needs='vocabulary'), 'TIKTOKEN_CACHE_DIR'),
    (GPU, dict(gb=16), ''), (dict(GPU, bfloat16=True, gpus=2), dict(needs='bfloat16', gpus=2), '')])
def test_what_cannot_be_measured_here_says_why(run, bench, here, options, reason):
    row = claim('a', **options)
    said = ledger.why_not(row, here, bench)
    assert reason in said and bool(reason) == bool(said)
    run([row], here=here)
    assert claim.seen == ([] if reason else ['a'])
    assert reason in list(ledger.listing([row], here, bench, []))[0]


def test_the_list_says_what_is_done(bench):
    row = claim('a', cpu=1.5)
    line = {'claim': 'a', 'command': row.command, 'date': '2026-01-02', 'text': '', 'seconds': None, **CPU}
    texts = [list(ledger.listing([row], CPU, bench, known))[0] for known in ([], [line], [dict(line, error='x')])]
    assert [text.rpartition(': ')[2] for text in texts] == ['to do', 'done', 'to do'] and '1m30s' in texts[0]


def test_the_table_has_a_column_for_each_machine_and_what_is_missing():
    rows = [claim('both'), claim('gpu-only', cpu=0), claim('cpu-only', gpu=0)]
    def line(name, here, text, date='2026-01-02', **more):
        return {**here, 'claim': name, 'command': f'python {name}.py', 'text': text, 'spread': '', 'date': date, **more}
    seen = [line('both', CPU, 'old', '2026-01-01'), line('both', CPU, 'a | b'), line('gpu-only', GPU, '5 ms'),
            {**line('both', CPU, ''), 'error': 'later'}, {**line('both', GPU, ''), 'error': 'no\nmemory'}]
    table = list(claims_table.table(rows, seen))
    assert table[0] == f'| claim | command | {CPU["machine"]} | {GPU["machine"]} |'
    assert table[2] == '|  |  | PyTorch 2.13.0 | PyTorch 2.13.0, driver 550.1 |'
    assert table[3].endswith('| a \\| b; 2026-01-02 | failed: no memory; 2026-01-02 |')
    assert table[4].endswith('|  | 5 ms; 2026-01-02 |')
    assert table[5].endswith('| not measured yet |  |')
    assert list(claims_table.table(rows, seen[:1]))[4].endswith('|  | not measured yet |')


def test_a_cell_says_what_is_not_as_in_the_rest_of_its_table():
    def line(text, date, **more):
        return {**CPU, 'claim': 'a', 'command': 'python a.py', 'text': text, 'date': date, **more}
    seen = [line('new', '2026-02-01', torch='2.12.0', command='python a.py --old'), line('older', '2026-01-01'),
            line('of another', '2026-03-01', claim='b', torch='2.14.0')]
    table = list(claims_table.table([claim('a')], seen))
    assert 'PyTorch 2.14.0' in table[2]
    assert '| new (an older command, PyTorch 2.12.0); 2026-02-01 |' in table[3]


def test_no_text_breaks_the_table_or_the_document(tmp_path):
    here = dict(CPU, machine='a | b', driver='1\n2')
    line = {**here, 'claim': 'a', 'command': 'python a.py', 'text': f'x {claims_table.END} y', 'date': '2026-01-01'}
    (tmp_path / 'x.md').write_text(f'{claims_table.BEGIN}\n{claims_table.END}\nafter\n')
    texts = []
    for _ in range(2):
        claims_table.update_document([claim('a')], [line], tmp_path / 'x.md')
        texts.append((tmp_path / 'x.md').read_text())
    rows = texts[0].splitlines()
    assert texts[0] == texts[1] and len(rows) == 7 and {len(re.findall(r'(?<!\\)\|', row)) for row in rows[1:5]} == {5}


def test_the_table_of_a_document_is_made_anew_and_nothing_else_of_it(tmp_path):
    path = tmp_path / 'x.md'
    path.write_text(f'before\n{claims_table.BEGIN}\nold\n{claims_table.END}\nafter\n')
    for _ in range(2):
        claims_table.update_document([claim('a')], [], path)
    text = path.read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text and text.count('| a:') == 1
    path.write_text('no marks')
    with pytest.raises(ValueError, match='between which the table goes'):
        claims_table.update_document([claim('a')], [], path)
    assert path.read_text() == 'no marks'
    with pytest.raises(ValueError, match='cannot be read .No such file'):
        claims_table.update_document([claim('a')], [], tmp_path / 'nowhere.md')


def test_the_table_of_the_measurements_is_the_one_that_claims_jsonl_gives(tmp_path):
    for name in ('measurements.md', 'claims.jsonl'):
        (tmp_path / name).write_text(open(os.path.join(ROOT, 'docs', name), encoding='utf-8').read())
    known = claims_table.read(tmp_path / 'claims.jsonl')
    assert {line['claim'] for line in known} <= {row.name for row in claims.CLAIMS}
    claims_table.update_document(claims.CLAIMS, known, tmp_path / 'measurements.md')
    assert (tmp_path / 'measurements.md').read_text() == open(os.path.join(ROOT, 'docs', 'measurements.md'),
                                                              encoding='utf-8').read()


# the process that is waited for has begun another one, in a session of its own, before it hangs
HANGS = (f'import subprocess, sys, time; code = "import time; time.sleep({HANG})"; '
         f'other = subprocess.Popen([sys.executable, "-c", code], start_new_session=True); '
         f'open("pids", "w").write(str(other.pid)); time.sleep({HANG})')


def is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rpartition(')')[2].split()[0] not in 'ZX'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != 'linux', reason='processes are found in /proc')
@pytest.mark.parametrize('why, expected', [(subprocess.TimeoutExpired('x', 1), Failed),
                                           (KeyboardInterrupt(), KeyboardInterrupt)])
def test_when_a_command_is_given_up_all_that_it_has_started_ends(bench, monkeypatch, why, expected):
    bench.begin(60)
    processes, wait = [], subprocess.Popen.wait

    def give_up(self, timeout=None):  # once the other process is there
        if processes:
            return wait(self, timeout)
        processes.append(self)
        while not os.path.exists(f'{bench.work}/pids') or not open(f'{bench.work}/pids').read():
            time.sleep(0.01)
        raise why
    monkeypatch.setattr(subprocess.Popen, 'wait', give_up)
    with pytest.raises(expected):
        bench.run('python -c', HANGS)
    other = int(open(f'{bench.work}/pids').read())
    while is_alive(other):
        pass
    assert processes[0].returncode == -signal.SIGKILL


def test_a_command_that_takes_too_long_is_given_up(bench):
    bench.begin(0)
    with pytest.raises(Failed, match='times as long as expected'):
        bench.run('python -c', f'import time; time.sleep({HANG})')


def test_a_command_that_fails_says_why_with_the_last_line_of_its_error(bench):
    bench.begin(1)
    with pytest.raises(Failed, match='^no such thing$'):
        bench.run('python -c', 'import sys; print("a line"); sys.exit("a word\\nno such thing")')
    with pytest.raises(Failed, match='^exit code 3 and no message$'):
        bench.run('python -c', 'raise SystemExit(3)')
    for said in ('CUDA out of memory. Tried', 'ValueError: it', 'RuntimeError: it'):
        with pytest.raises(Failed, match=f'^{said}$'):
            bench.run('python -c', f'import sys; sys.exit("KeyError: x\\n  {said}\\n  raise ChildFailedError(\\nend")')
    assert bench.run('python -c', 'print("well"); raise SystemExit(3)', codes=[3])[0] == 'well\n'


def test_a_command_gets_its_environment_and_no_gpu_that_is_not_to_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '7')
    code = 'import json, os; print(json.dumps([os.environ.get(key) for key in ("A", "B", "CUDA_VISIBLE_DEVICES")]))'
    for has_gpu, visible in ((True, ''), (False, '7')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_gpu)
        bench = ledger.Bench(ROOT, str(tmp_path), 'cpu')
        bench.begin(1)
        assert bench.json('A=1 python -c', code, B='x y') == ['1', 'x y', visible]


def test_temporary_files_of_commands_go_with_the_claim_but_the_vocabulary_stays(bench, monkeypatch):
    monkeypatch.delenv('TIKTOKEN_CACHE_DIR', raising=False)
    bench = ledger.Bench(ROOT, bench.folder, 'cpu')
    bench.begin(1)
    code = 'import json, os, tempfile; print(json.dumps([tempfile.gettempdir(), os.environ["TIKTOKEN_CACHE_DIR"]]))'
    assert bench.json('python -c', code) == [bench.work, os.path.join(tempfile.gettempdir(), 'data-gym-cache')]


@pytest.mark.skipif(sys.platform != 'linux', reason='processes are found in /proc')
def test_the_command_that_a_killed_call_left_behind_is_ended_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(tmp_path))
    left = tmp_path / f'{ledger.FOLDER}left'
    left.mkdir()
    (left / ledger.LOCK).touch()
    env = {**os.environ, processes.MARK: processes.mark(left, 5.25)}
    command = subprocess.Popen(['sleep', str(HANG)], env=env)
    ledger.remove_left_behind()
    assert command.wait(HANG) == -signal.SIGKILL and not left.exists()


def test_what_a_killed_call_left_behind_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    left, others = tmp_path / f'{ledger.FOLDER}left', tmp_path / f'{ledger.FOLDER}others'
    for folder in (left, others):
        folder.mkdir()
    (left / ledger.LOCK).touch()
    with ledger.workplace(ROOT, 'cpu', '') as bench:
        assert os.path.isdir(bench.folder) and not left.exists() and others.exists()
        (left / 'x').mkdir(parents=True)
        held = files.lock(str(left / ledger.LOCK))
        ledger.remove_left_behind()
        assert os.path.isdir(bench.folder) and left.exists()
        held.release()
    assert not os.path.exists(bench.folder)


def test_the_text_must_be_tiny_shakespeares(tmp_path, monkeypatch):
    path = tmp_path / 'x.txt'
    path.write_text('1234')
    for given, wrong in ((path, 'has 4 bytes'), (tmp_path, 'is a folder'), (tmp_path / 'y', 'does not exist')):
        with pytest.raises(ValueError, match=f'{re.escape(str(given))}.*{wrong}; .*1,115,394 bytes'):
            ledger.text_of(ROOT, str(given))
    monkeypatch.setattr(ledger, 'SHAKESPEARE', 4)
    assert ledger.text_of(ROOT, str(path)) == str(path) and ledger.text_of(ROOT, '').endswith('input.txt')


def test_the_checkpoints_of_a_run_are_removed_unless_they_are_kept(bench):
    bench.begin(1)
    code = ('import os; os.makedirs("run", exist_ok=True); open("run/ckpt.pt", "w"); '
            'open("run/metrics.jsonl", "w").write(\'{"loss": 1}\\n{"val_loss": 2}\\n{"done": true}\\n\')')
    for keep in (False, True):
        assert bench.train(f'python -c {shlex.quote(code)}', keep=keep) == ([{'loss': 1}], [{'val_loss': 2}],
                                                                            {'done': True})
        assert os.path.exists(f'{bench.work}/run/ckpt.pt') == keep


@pytest.mark.parametrize('args, expected', [
    (['--mode=claims', 'config/quickstart.py', '--n_layer', '2'], 'leave out config/quickstart.py, n_layer\n'),
    (['--only=check'], 'are for --mode=claims'), (['--mode=claims', '--input=nowhere'], "'nowhere' does not exist"),
    (['--mode=claims', '--minutes=0'], 'minutes=0.0 is not above 0'),
    (['--mode=claims', '--out=x.md'], 'try --out=claims.jsonl'),
    (['--mode=claims', '--table=x.md'], 'claims.jsonl has no measurements to make a table of; add --out=docs/'),
    (['--mode=claims', '--device=cuda:1'], 'CUDA_VISIBLE_DEVICES=1'), (['--mode=claims', '--json'], 'json'),
    (['--mode=claims', '--only=rofline'], 'did you mean roofline'),
    (['--mode=claims', '--out=nowhere/x.jsonl'], 'nowhere/x.jsonl cannot be written')])
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, args, expected):
    done = python(os.path.join(ROOT, 'bench.py'), *args, cwd=tmp_path)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


# code for hook(): two claims, the second of which is stopped from outside
STOPPED = '''
import os, signal
from common.benchmark import claims, ledger
claims.CLAIMS[:] = [ledger.Claim('one', 'x', 'y', lambda bench, command: ({}, 'fine', ''), cpu=1),
                    ledger.Claim('two', 'x', 'y', lambda bench, command: os.kill(os.getpid(), signal.SIGTERM), cpu=1)]
'''


def test_it_ends_as_by_ctrl_c_when_it_is_told_to(tmp_path):
    done = hook(STOPPED, 'bench.py', '--mode=claims', '--device=cpu', cwd=tmp_path)
    assert done.returncode == 130 and '2 of 2: two' in done.stdout
    assert done.stderr.endswith('stopped; claims.jsonl has what is done, the same command goes on\n')
    assert [json.loads(line)['claim'] for line in open(tmp_path / 'claims.jsonl')] == ['one']
    assert sorted(os.listdir(tmp_path)) == ['claims.jsonl', 'claims.md']
    done = hook(STOPPED, 'bench.py', '--mode=claims', '--device=cpu', '--list', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == 'one   1m00s  x: done\ntwo   1m00s  x: to do\n'
