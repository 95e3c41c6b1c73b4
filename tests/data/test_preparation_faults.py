"""
What goes wrong around a preparation: each system call on its files fails once, stdout is lost, the environment is a
run's. What was done counts, the earlier dataset is never half replaced, and the same command ends with the same bytes.
"""
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from running import ENVIRONMENT, HANG, ROOT
from test_documents import write
from test_pipeline import STORIES, files_of

SHORT, SHORT_THEN_FULL = -1, -2  # of tests/fail_once.c: a read or write of one byte; a write, and then the disk is full
ERRORS = [errno.EIO, errno.EACCES, errno.ENOSPC]
FAULTS = {'read': [*ERRORS, SHORT], 'write': [*ERRORS, SHORT, SHORT_THEN_FULL]}

# For each line on stdin, a prepare script in a fork of this process; with tests/fail_once.c, its n-th call on the files
# in `folder` fails. `ahead` is code to run before it.
SERVER = '''
import ctypes, json, os, signal, sys, traceback
sys.path[:0] = [{root!r}, {data!r}]
import tokenizers
from corpus import documents, encoding, pipeline, shards
documents.BLOCK, encoding.SHARD, encoding.UNIT = 500, 700, 300  # three shards
def run(folder, args, number, fault, calls, recipe, ahead):
    signal.alarm({hang})
    os.chdir(folder)
    for name, descriptor in (('out.txt', 1), ('err.txt', 2)):
        os.dup2(os.open(os.path.join(os.path.dirname(folder), name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ['prepare.py', *args]
    exec(ahead, globals())
    if calls:
        ctypes.CDLL(None).arm_fault(folder.encode(), calls.encode(), number, fault)
    try:
        pipeline.prepare('unused', 'a corpus', **recipe)
    except SystemExit as stopped:
        return stopped.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run(*json.loads(line))
            sys.stdout.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''
STOP_AFTER_TWO_SHARDS = '''
def write_manifest(self, original=shards.Shards.write_manifest):
    original(self)
    if self.manifest['shards'] == 2:
        os._exit(9)
shards.Shards.write_manifest = write_manifest
'''
STOP_WHILE_DELIVERING = '''
def replace(source, target, original=os.replace):
    if target.endswith('meta.json') and 'unfinished' not in target:
        os._exit(9)
    original(source, target)
os.replace = replace
'''
STARTS = ['nothing', 'earlier', 'killed', 'delivering']
JOBS = {'char': ['--input=texts', '--out=out'], 'bpe': ['--input=texts', '--out=out', '--vocab_size=270']}


@pytest.fixture(scope='module')
def preparations(tmp_path_factory):
    """Preparations in one folder, whose Python has the library of tests/fail_once.c: see the functions here."""
    if sys.platform != 'linux':
        pytest.skip('wants Linux')
    base, compiler = tmp_path_factory.mktemp('injected'), shutil.which('cc') or shutil.which('gcc')
    library, calls, here = base / 'fail_once.so', base / 'calls.txt', base / 'here'
    if compiler:
        source = os.path.join(ROOT, 'tests', 'fail_once.c')
        subprocess.run([compiler, '-shared', '-fPIC', '-o', library, source, '-ldl'], check=True)
    (here / 'texts').mkdir(parents=True)
    write(here / 'texts' / 'a.jsonl', STORIES[:12])
    write(here / 'texts' / 'b.jsonl', STORIES[12:20])
    write(here / 'other.jsonl', STORIES[20:40])
    code = SERVER.format(root=ROOT, data=os.path.join(ROOT, 'data'), hang=HANG)
    preload = {'LD_PRELOAD': str(library)} if compiler else {}
    server = subprocess.Popen([sys.executable, '-c', code], text=True, env={**ENVIRONMENT, **preload},
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(args, number=0, fault=0, ahead='', **recipe):
        """(CompletedProcess, its calls) of a preparation whose n-th call fails, if n > 0."""
        calls.write_text('')
        recipe = {'tokenizer': 'char', **recipe}
        listed = str(calls) if compiler else ''
        print(json.dumps([str(here), args, number, fault, listed, recipe, ahead]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        said = [(base / name).read_text() for name in ('out.txt', 'err.txt')]
        return subprocess.CompletedProcess(args, code, *said), calls.read_text().splitlines()

    def start_from(name):
        """here/out becomes a copy of the folder of that name, if there is one."""
        shutil.rmtree(here / 'out', ignore_errors=True)
        if (base / name).exists():
            shutil.copytree(base / name, here / 'out')

    for job, args in JOBS.items():
        start_from('nothing')
        earlier = ['--input=other.jsonl', '--out=out']
        for name, ahead, command in (('earlier', '', earlier), ('killed', STOP_AFTER_TWO_SHARDS, args),
                                     ('delivering', STOP_WHILE_DELIVERING, args), ('whole', '', args)):
            done, _ = run(command, ahead=ahead)
            assert done.returncode == (9 if ahead else 0), done.stderr
            shutil.copytree(here / 'out', base / f'{name}-{job}')
            start_from(f'earlier-{job}')
    yield SimpleNamespace(run=run, start_from=start_from, out=here / 'out', base=base, can_fail=bool(compiler))
    server.stdin.close()
    server.wait()


def kinds(calls):
    """{call: its numbers}"""
    numbers = {}
    for number, call in enumerate(calls, start=1):
        numbers.setdefault(call, []).append(number)
    return numbers


def try_fault(preparations, start, job, number, fault):
    """AssertionError unless all is well after a fault."""
    whole, earlier = (files_of(preparations.base / f'{name}-{job}') for name in ('whole', 'earlier'))
    preparations.start_from(f'{start}-{job}')
    done, _ = preparations.run(JOBS[job], number, fault)
    assert 'Traceback' not in done.stdout + done.stderr, done.stderr
    there = files_of(preparations.out) if preparations.out.exists() else {}
    if done.returncode == 0:
        assert there == whole, f'exit code 0, and the wrong files: {done.stdout}'
    else:
        assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
        assert 'train.bin' not in there or there in (whole, earlier), f'half a dataset: {done.stderr}'
    again, _ = preparations.run(JOBS[job])
    assert again.returncode == 0, again.stderr
    assert files_of(preparations.out) == whole, f'{done.stderr} {again.stdout}'
    assert sorted(os.listdir(preparations.out)) == sorted(whole), 'something is left over'
    if start in ('killed', 'delivering'):
        assert 'going on after' in done.stdout + again.stdout, 'the finished shards were lost'


def try_all(preparations, start, job, cases, calls):
    if not preparations.can_fail:
        pytest.skip('wants a C compiler')
    wrong = []
    for number, fault in cases:
        try:
            try_fault(preparations, start, job, number, fault)
        except AssertionError as error:
            name = {SHORT: 'SHORT', SHORT_THEN_FULL: 'SHORT_THEN_FULL'}.get(fault) or errno.errorcode[fault]
            wrong.append(f'{start}, {job}: call {number}, {calls[number - 1]}, {name}: {error}')
    assert not wrong, f'{len(wrong)} of {len(cases)}:\n' + '\n'.join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize('start, job', [(start, 'char') for start in STARTS] + [('earlier', 'bpe')])
def test_every_call_may_fail_once_in_every_way(preparations, start, job):
    preparations.start_from(f'{start}-{job}')
    calls = preparations.run(JOBS[job])[1]
    cases = [case for call, numbers in kinds(calls).items() for faults in [FAULTS.get(call.split()[0], ERRORS)]
             for case in itertools.islice(zip(itertools.cycle(numbers), itertools.cycle(faults)),
                                          max(len(numbers), len(faults)))]
    try_all(preparations, start, job, cases, calls)


def test_each_function_of_the_system_may_fail_once(preparations):
    """The last call of each, and the first on a manifest, while two shards of three and an older dataset are there."""
    preparations.start_from('killed-char')
    calls = preparations.run(JOBS['char'])[1]
    last = {call.split()[0]: number for number, call in enumerate(calls, start=1)}
    first = {call: number for number, call in reversed([*enumerate(calls, start=1)]) if call.endswith('/manifest.json')}
    cases = [*zip(sorted({*last.values(), *first.values()}), itertools.cycle(ERRORS))]
    try_all(preparations, 'killed', 'char', cases, calls)


# what becomes of stdout and stderr

TO_STDOUT = 'os.dup2({}, 1)\n'
LOST = {
    'disk full': TO_STDOUT.format("os.open('/dev/full', os.O_WRONLY)"),
    'reader of a pipe gone': 'reading, writing = os.pipe(); os.close(reading); ' + TO_STDOUT.format('writing'),
    'closed': 'os.close(1); os.close(2); sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None',
    'terminal gone': 'ours, theirs = os.openpty(); os.dup2(theirs, 1); os.dup2(theirs, 2); os.close(theirs); '
                     'os.close(ours)',
    'log at its size limit': "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
                             "os.ftruncate(1, 50_000); os.lseek(1, 0, os.SEEK_END)",
}


@pytest.mark.parametrize('how', LOST)
def test_a_preparation_whose_output_is_lost_succeeds(preparations, how):
    preparations.start_from('killed-char')
    done, _ = preparations.run(JOBS['char'], ahead=LOST[how])
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    assert files_of(preparations.out) == files_of(preparations.base / 'whole-char')
    assert done.stderr.count('\n') <= 1, 'the loss is told once, if it can be'


def test_a_terminal_that_is_not_utf8_shows_escapes(preparations):
    preparations.start_from('nothing')
    write(preparations.out.parent / '이야기.jsonl', STORIES)
    ascii_only = "sys.stdout.reconfigure(encoding='ascii'); sys.stderr.reconfigure(encoding='ascii')"
    done, _ = preparations.run(['--input=이야기.jsonl', '--out=자료'], ahead=ascii_only)
    assert done.returncode == 0, done.stderr
    assert '\\uc790\\ub8cc' in done.stdout


# torchrun's environment

def test_a_preparation_is_no_rank_of_a_run(preparations):
    rank = "os.environ.update(RANK='1', LOCAL_RANK='1', WORLD_SIZE='abc')\nimport time; time.sleep = None"
    preparations.start_from('earlier-char')
    done, _ = preparations.run(JOBS['char'], ahead=rank)
    assert done.returncode == 0 and 'to train on it' in done.stdout
    assert files_of(preparations.out) == files_of(preparations.base / 'whole-char')
    done, _ = preparations.run(['--input=none.txt'], ahead=rank)
    assert (done.returncode, done.stderr) == (2, "here/prepare.py: there is no 'none.txt'\n")
