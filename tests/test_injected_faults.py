"""
Each system call that a run makes on its files fails once (fail_once.c). The run then ends as one without a fault; or it
ends with a message, nothing is lost, and the same command completes it. If its log lacks something, it has said so.
"""
import errno
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

from conftest import TOY, assert_same_run
from running import ENVIRONMENT, HOOKED, ROOT, TRAIN

# in fail_once.c: a single byte is read or written; likewise, and then the disk is full
SHORT, SHORT_THEN_FULL = -1, -2
FAULTS = {
    'open': [errno.EACCES, errno.EIO, errno.ENOSPC, errno.EINTR],
    'read': [errno.EIO, SHORT, errno.EINTR],
    'write': [errno.ENOSPC, SHORT_THEN_FULL, errno.EIO, SHORT, errno.EINTR],
    'fsync': [errno.EIO, errno.ENOSPC, errno.EINTR],
    'close': [errno.EIO, errno.ENOSPC, errno.EINTR],
    'rename': [errno.EACCES, errno.EIO, errno.ENOSPC],
    'mkdir': [errno.ENOSPC, errno.EACCES, errno.EIO],
    'flock': [errno.ENOLCK, errno.EINTR],
    'fstat': [errno.EIO],
    'any other': [errno.EIO, errno.EACCES],
}

# Evaluations, samples and saves at 0, 3 and 6, and a skipped update between them: all the files that a run can have.
SETTINGS = [*TOY, '--n_layer=1', '--n_embd=16', '--modern=True', '--optimizer=muon', '--dropout=0.1', '--max_iters=6',
            '--eval_interval=3', '--eval_iters=1', '--keep_interval=3', '--sample_prompts=FILE:prompts.txt',
            '--dataset=data', '--out_dir=out']
AHEAD = '''
from common.training import guard
def check_update(self, iter_num, loss, *rest, original=guard.StepGuard.check_update, **more):
    return original(self, iter_num, loss * float('nan') if iter_num in (1, 4) else loss, *rest, **more)
guard.StepGuard.check_update = check_update
def generate(self, ids, count, original=model.GPT.generate, **more):
    return original(self, ids, 5, **more)  # 200 tokens would take half of the run's time
model.GPT.generate = generate
import ctypes
ctypes.CDLL(None).arm_fault({here!r}.encode(), {journal!r}.encode(), {number}, {fault})
'''


class Runs:
    """Runs in the folder `here` into here/out, by a Python that has preloaded the library of fail_once.c."""

    def __init__(self, base, corpus, library):
        self.base, self.here, self.out, self.journal = base, base / 'here', base / 'here' / 'out', base / 'journal'
        shutil.copytree(corpus, self.here / 'data')
        for split in ('train', 'val'):
            tokens = (self.here / 'data' / f'{split}.bin').stat().st_size // 2
            (self.here / 'data' / f'{split}_mask.bin').write_bytes((b'\1\1\1\0' * tokens)[:tokens])
        (self.here / 'prompts.txt').write_text('the cat\na dog\n')
        self.python = subprocess.Popen([sys.executable, os.path.join(ROOT, 'tests', 'warm_python.py')], text=True,
                                       env={**ENVIRONMENT, 'LD_PRELOAD': str(library)}, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE)

    def run(self, number=0, fault=0, init_from='auto', code=''):
        """A run whose n-th call fails, with a piece of code ahead of it: CompletedProcess, [calls]."""
        self.journal.unlink(missing_ok=True)
        code += AHEAD.format(here=str(self.here), journal=str(self.journal), number=number, fault=fault)
        command = [HOOKED, code, TRAIN, *SETTINGS, f'--init_from={init_from}']
        print(json.dumps([[command, str(self.here), ENVIRONMENT, '', 100]]), file=self.python.stdin, flush=True)
        done = subprocess.CompletedProcess(command, *json.loads(self.python.stdout.readline())[0])
        return done, re.sub(r'#\d+', '#', self.journal.read_text()).splitlines()  # the number of a file without a name

    def start_from(self, name):
        """Make `out` a copy of the folder that was kept, or remove it."""
        shutil.rmtree(self.out, ignore_errors=True)
        if name != 'nothing':
            shutil.copytree(self.base / name, self.out)

    def calls(self, start, **options):
        """The calls of a run without a fault: 'open out/last.pt', ..."""
        self.start_from(start)
        done, calls = self.run(**options)
        assert done.returncode == 0, done.stderr
        return calls


@pytest.fixture(scope='module')
def runs(tmp_path_factory, corpus_dir):
    """Runs that may start from `nothing`, or from `killed`, after its second save; `whole` is one without a fault."""
    compiler = shutil.which('cc')
    if platform.libc_ver()[0] != 'glibc' or not compiler:
        pytest.skip('needs glibc and a C compiler')
    base = tmp_path_factory.mktemp('faults')
    source, library = os.path.join(ROOT, 'tests', 'fail_once.c'), base / 'fail_once.so'
    subprocess.run([compiler, '-shared', '-fPIC', source, '-o', library, '-ldl'], check=True)
    runs = Runs(base, corpus_dir, library)
    assert runs.run(code="when_printed('iter 5:', die)")[0].returncode == -9
    shutil.copytree(runs.out, base / 'killed')
    runs.calls('nothing')
    shutil.copytree(runs.out, base / 'whole')
    yield runs
    runs.python.kill()  # its end would take seconds
    runs.python.wait()


def contents(folder):
    """{path: bytes} of the files below a folder."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return {os.path.relpath(path, folder): open(path, 'rb').read() for path in paths}


def log_lines(path):
    """The lines of a log without what was measured. ValueError if one is damaged."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in ('ms', 'tok_s', 'train_s', 'mem_gb')}
            for line in lines]


def check_out(runs, said):
    """`out` is as `whole`, but for lines and files of the log, and spare checkpoints, of which a run has `said` so."""
    whole = runs.base / 'whole'
    missing = contents(whole).keys() - contents(runs.out).keys()
    assert contents(runs.out).keys() <= contents(whole).keys(), f'it left {os.listdir(runs.out)}'
    spare = {name for name in missing if name == 'prev.pt' or name.startswith('iter_')}
    assert not spare or 'not saved' in said, f'{spare} missing'
    lost = [name for name in missing - spare if not name.endswith('.jsonl')]
    for name in ('metrics.jsonl', 'spikes.jsonl'):
        ours, theirs = log_lines(runs.out / name), log_lines(whole / name)
        lost += [line for line in theirs if line not in ours]
        assert ours == [line for line in theirs if line in ours], f'the lines of {name} are {ours}'
    assert len(lost) <= said.count('not logged'), f'{lost} missing'
    for name in ['metrics.jsonl', *(name for name in missing if name.startswith('samples'))]:
        (runs.out / name).parent.mkdir(exist_ok=True)
        shutil.copy(whole / name, runs.out / name)
    assert_same_run(runs.out, whole)


def check_fault(runs, start, number, fault, calls):
    """AssertionError unless all is well when this call of `calls` fails."""
    runs.start_from(start)
    before = contents(runs.out)
    done, ours = runs.run(number, fault)
    assert ours[:number] == calls[:number], 'it made other calls'
    said = done.stdout + done.stderr
    end = f'exit code {done.returncode}, {said.splitlines()[-1:]}'
    assert done.returncode in (0, 1, 2) and 'Traceback' not in said, end
    if done.returncode != 0:
        message = os.strerror(fault if fault > 0 else errno.ENOSPC)
        assert message in said or calls[number - 1].startswith('stat '), f'no {message!r}: {end}'
        if contents(runs.out) == before:
            return  # as if it had never been started
    if done.returncode != 0 or contents(runs.out).keys() != contents(runs.base / 'whole').keys():
        again, _ = runs.run()
        assert again.returncode == 0, f'the next one: {again.stderr}'
        assert start == 'nothing' or re.search(r'resuming out/last.pt(.new)? at iteration [36]', again.stdout), end
    elif start == 'killed':
        assert 'resuming out/last.pt at iteration 3' in done.stdout, end
    check_out(runs, done.stdout)


def check_faults(runs, start, cases, calls):
    """check_fault() for each of the `cases`, (number, fault)."""
    wrong = []
    for number, fault in cases:
        try:
            check_fault(runs, start, number, fault, calls)
        except (AssertionError, OSError, ValueError) as error:
            name = {SHORT: 'SHORT', SHORT_THEN_FULL: 'SHORT_THEN_FULL'}.get(fault) or errno.errorcode[fault]
            wrong.append(f'{start}, call {number}, {calls[number - 1]}, {name}: {str(error).splitlines()[0]}')
    assert not wrong, f'{len(wrong)} of {len(cases)}:\n' + '\n'.join(wrong)


def kinds(calls, ignore):
    """
    [(faults, numbers)]: how the calls of a kind can fail, and where they stand in `calls`, from 1. They are of one kind
    if name and path are equal without what matches the pattern `ignore`.
    """
    found = {}
    for number, call in enumerate(calls, start=1):
        name, _, path = call.partition(' ')
        found.setdefault((name, re.sub(ignore, '', path)), []).append(number)
    return [(FAULTS.get(name, FAULTS['any other']), numbers) for (name, _), numbers in found.items()]


def test_each_kind_of_call_on_each_kind_of_file_may_fail(runs):
    """In one of its ways, at one of its places; every other kind here, and all of them with NANOGPT_TESTS=all."""
    calls = runs.calls('killed')
    cases = [(numbers[i % len(numbers)], faults[i % len(faults)])
             for i, (faults, numbers) in enumerate(kinds(calls, r'[\w-]+(?=\.)')) if faults != FAULTS['fstat']]
    check_faults(runs, 'killed', cases[::2], calls)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))
def test_each_call_of_a_resumed_run_may_fail_in_every_way(runs, part):
    """On each file; of those on the same file each way at another place."""
    calls = runs.calls('killed')
    cases = [case for faults, numbers in kinds(calls, r'\d{6}') for case in zip(itertools.cycle(numbers), faults)]
    check_faults(runs, 'killed', cases[part::4], calls)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(2))
def test_each_call_of_a_new_run_may_fail(runs, part):
    """At its first and its last place: where there is nothing yet, and where there is something to replace."""
    calls = runs.calls('nothing')
    cases = [case for faults, numbers in kinds(calls, r'\d{6}') if ' out' in calls[numbers[0] - 1]
             for case in zip(sorted({numbers[0], numbers[-1]}), faults * 2)]
    check_faults(runs, 'nothing', cases[part::2], calls)


@pytest.mark.parametrize('which', [slice(0, None, 6), pytest.param(slice(None), marks=pytest.mark.slow)], ids=str)
def test_a_run_that_cannot_be_set_aside_stays_in_one_folder(runs, which):
    earlier, wrong = contents(runs.base / 'killed'), []
    del earlier['.lock']
    calls = runs.calls('killed', init_from='scratch')
    moves = range(calls.index('mkdir out/previous-1') + 1, calls.index('statvfs out') + 1)
    for number in moves[which]:
        runs.start_from('killed')
        done, _ = runs.run(number, errno.EIO, init_from='scratch')
        folders = runs.out, runs.out / 'previous-1'
        if 'Traceback' in done.stderr or not any(contents(folder).items() >= earlier.items() for folder in folders):
            wrong.append(f'call {number}, {calls[number - 1]}: {sorted(contents(runs.out))}, {done.stderr}')
    assert not wrong, '\n'.join(wrong)
