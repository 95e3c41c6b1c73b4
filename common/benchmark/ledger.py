"""
Claims measured on this machine, one after the other. A measurement is a line of a file (claims_table.py), written as
soon as it is there: whatever ends the program costs no more than the claim at hand.

On disk, beside that file: a folder for temporary files of up to 5 GB, with the checkpoints of one run of a GPT-2 at a
time; it is removed at the end or, after a kill -9, by the next call, which also ends the command that was left behind
(on Linux). Nothing is fetched from a network. It knows no single claim: claims.py has them.
"""
import contextlib
import datetime
import difflib
import glob
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Callable

import torch

from common import cpu, processes
from common.benchmark import readiness
from common.benchmark.claims_table import append, cell, counted, json_lines, read, table, table_path
from common.console import duration
from common.device import native_bf16
from common.files import Locked, lock, write_whole

DONE, TO_DO = 'done', 'to do'
FOLDER, LOCK = 'nanogpt-claims-', 'in-use.lock'  # of temporary files, in the system's folder for them
PATIENCE = 3  # a claim may take so many times its estimate, and a minute more
SHAKESPEARE = 1115394  # bytes of tiny Shakespeare's text
TELLING = re.compile(r'(?<!ChildFailed)Error|out of memory')  # the line that says why; torchrun's own says nothing


@dataclass
class Claim:
    name: str
    what: str             # that is claimed
    command: str          # behind it, as one would type it; once it changes, the claim is measured again
    measure: Callable     # measure(bench, command): ({name: number}, a readable text, how far it scatters or '')
    cpu: float = 0        # minutes on 2 cores of a CPU; 0: nothing that a machine without a GPU measures
    gpu: float = 0        # minutes on an H100; 0: nothing for a GPU
    gb: int = 0           # of memory that the GPU must have
    gpus: int = 1
    needs: str = ''       # bfloat16, shakespeare, vocabulary or tests: see why_not()

    def minutes(self, device):
        """The estimate for a kind of device; 0: it is not about that."""
        return self.cpu if device == 'cpu' else self.gpu


class Failed(Exception):
    """A command behind a claim did not end well; the text says how."""


class Bench:
    """The place where claims are measured: commands as processes of their own, and the datasets that they need."""

    def __init__(self, root, folder, device, text=''):
        """root: of the project. folder: for temporary files. text: the file of tiny Shakespeare, if there is one."""
        self.root, self.folder, self.text, self.end, self.started = root, folder, text, None, time.time()
        self.work = os.path.join(folder, 'work')  # of one claim: the working directory of its commands
        # where tiktoken itself looks, before TMPDIR is another
        self.vocabulary = os.environ.get('TIKTOKEN_CACHE_DIR') or os.path.join(tempfile.gettempdir(), 'data-gym-cache')
        self.env = {**os.environ, processes.MARK: processes.mark(folder, self.started), 'PYTHONPATH': root,
                    'WANDB_MODE': 'disabled', 'TMPDIR': self.work, 'TIKTOKEN_CACHE_DIR': self.vocabulary,
                    'TORCHINDUCTOR_CACHE_DIR': os.path.join(folder, 'compiled')}
        if device == 'cpu' and torch.cuda.is_available():
            self.env['CUDA_VISIBLE_DEVICES'] = ''  # the configs take smaller settings then

    def begin(self, minutes):
        """An empty working directory, for a claim that may take so long."""
        shutil.rmtree(self.work, ignore_errors=True)
        os.makedirs(self.work)
        self.end = time.monotonic() + 60 * minutes

    def run(self, command, *more, codes=(0,), folder='', **env):
        """
        Run a command with `more` words behind it, in a folder ('': the claim's own); returns (its stdout, seconds). The
        words NAME=value in front of it and `env` are added to its environment. Failed unless its exit code is one of
        `codes`, or if time is up.
        """
        words = [*shlex.split(command), *map(str, more)]
        env = {**self.env, **env}
        while '=' in words[0]:
            name, _, env[name] = words.pop(0).partition('=')
        program = {'python': [sys.executable], 'torchrun': [sys.executable, '-m', 'torch.distributed.run']}
        words[:1] = program.get(words[0], words[:1])
        words = [os.path.join(self.root, word) if word.endswith('.py') and not word.startswith('config/') else word
                 for word in words]
        with open(f'{self.work}/stdout', 'w+b') as out, open(f'{self.work}/stderr', 'w+b') as err:
            begin = time.perf_counter()
            process = subprocess.Popen(words, cwd=folder or self.work, env=env, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=err, start_new_session=True)  # Ctrl-C is for this one, which ends that
            try:
                code = process.wait(max(1, self.end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Failed(f'took {PATIENCE} times as long as expected, and more; is this machine busy?') from None
            finally:
                if process.returncode is None:
                    processes.kill(self.folder, self.started, process.pid if hasattr(os, 'killpg') else None)
                    process.kill()  # on Windows
                    process.wait()
            seconds = time.perf_counter() - begin
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors='replace'))
        if code not in codes:
            lines = (texts[1].strip() or texts[0].strip()).splitlines()
            telling = [line for line in lines if TELLING.search(line)] or lines
            raise Failed(telling[-1].strip() if telling else f'exit code {code} and no message')
        return texts[0], seconds

    def json(self, command, *more, **env):
        """The object that a command prints in its last line."""
        return json.loads(self.run(command, *more, **env)[0].splitlines()[-1])

    def train(self, command, *more, name='run', keep=False, **env):
        """
        A training run in the folder `name`; returns (its training lines, its evaluations, the last line of
        metrics.jsonl). Its checkpoints are removed unless told to `keep` them.
        """
        self.run(command, f'--out_dir={name}', '--wandb_log=False', *more, **env)
        for path in glob.glob(f'{self.work}/{name}/*.pt') * (not keep):
            os.unlink(path)
        lines = json_lines(f'{self.work}/{name}/metrics.jsonl')
        return [line for line in lines if 'loss' in line], [line for line in lines if 'val_loss' in line], lines[-1]

    def dataset(self, name):
        """
        The folder of a dataset, which is prepared at most once. pydoc_char: Python's documentation; shakespeare_char;
        source: the source of Python's standard library, up to 20 MB, with a vocabulary of 4,096 of its own.
        """
        folder = os.path.join(self.folder, name)
        command = {'pydoc_char': 'python data/pydoc_char/prepare.py',
                   'shakespeare_char': f'python data/shakespeare_char/prepare.py --input={shlex.quote(self.text)}',
                   'source': 'python data/text/prepare.py --input=source.txt --vocab_size=4096'}[name]
        if not os.path.isfile(os.path.join(folder, 'meta.json')):
            if name == 'source':
                self.run('python -c', 'from common.benchmark import probes; probes.write_source("source.txt")')
            self.run(command, f'--out={folder}')
        return folder


def machine(device):
    """What is said of this machine in each line, and what claims need to know of it: a dict."""
    cores, threads = processes.cores(), torch.get_num_threads()
    busy = f'{counted(threads, "thread")} of ' * (threads < cores)
    version = torch.__version__ if device == 'cuda' else torch.__version__.partition('+')[0]  # 2.13.0+cu126
    about = {'machine': f'{cpu.describe()}, {busy}{counted(cores, "core")}', 'cores': cores, 'threads': threads,
             'device': device, 'torch': version, 'driver': None, 'gb': 0, 'gpus': 0, 'bfloat16': native_bf16(device)}
    if device == 'mps':
        about['machine'] = f'{cpu.describe()}, its GPU'
    elif torch.backends.mps.is_available():
        raise ValueError(f'device={device!r}: the commands would take the GPU; leave it out')
    if device == 'cuda':
        driver = readiness.driver()
        about.update(gb=round(torch.cuda.get_device_properties(0).total_memory / 1e9), gpus=torch.cuda.device_count())
        name = torch.cuda.get_device_name()
        about.update(machine=name + f', {about["gb"]} GB' * ('GB' not in name),
                     driver=driver.found.partition(':')[0] if driver.state == readiness.OK else None)
    return about


def why_not(claim, here, bench):
    """Why a claim cannot be measured here; '' if it can."""
    if not claim.minutes(here['device']):
        return 'needs a GPU' if claim.gpu else 'is about a CPU: --device=cpu'
    if here['device'] != 'cpu' and claim.gpus > here['gpus']:
        return f'needs {claim.gpus} GPUs'
    if here['device'] != 'cpu' and claim.gb > here['gb'] + 1:  # a card of 16 GB says 15.8
        return f'needs a GPU of {claim.gb} GB'
    text = os.path.isfile(bench.text)
    has, remedy = {
        '': (True, ''),
        'bfloat16': (here['bfloat16'], 'needs a device with bfloat16'),
        'shakespeare': (text, "needs tiny Shakespeare's text: --input=FILE"),
        'vocabulary': (text and os.path.isdir(bench.vocabulary),
                       "needs tiny Shakespeare's text (--input=FILE), and the files of GPT-2's vocabulary, in "
                       'TIKTOKEN_CACHE_DIR'),
        'tests': (importlib.util.find_spec('pytest') and os.path.isdir(os.path.join(bench.root, 'tests')),
                  'needs pip install -r requirements-dev.txt')}[claim.needs]
    return '' if has else remedy


def of(claim, here, lines):
    """The lines about a claim as it is now, on this machine with this PyTorch."""
    this = (claim.name, claim.command, here['machine'], here['torch'])
    return [line for line in lines if (line['claim'], line.get('command'), line['machine'], line['torch']) == this]


def pace(here, lines):
    """How many times their estimates claims took on this machine, the median; 1 while fewer than three are known."""
    ratios = [line['seconds'] / 60 / line['estimate'] for line in lines
              if line['machine'] == here['machine'] and 'error' not in line
              and line.get('estimate') and line.get('seconds')]
    return statistics.median(ratios) if len(ratios) >= 3 else 1


def chosen(claims, only):
    """The claims that `only` names, separated by commas; all if it is empty. ValueError for an unknown name."""
    names, wanted = [claim.name for claim in claims], [name.strip() for name in only.split(',') if name.strip()]
    if only and not wanted:
        raise ValueError(f'{only=} names no claim; python bench.py --mode=claims --list names them all')
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=2)
            raise ValueError(f'only={name!r} is no claim; ' + (f'did you mean {" or ".join(near)}?' if near else
                                                               'python bench.py --mode=claims --list names them all'))
    return [claim for claim in claims if not only or claim.name in wanted]


def state(claim, here, bench, lines):
    """DONE, TO_DO, or why a claim cannot be measured here."""
    done = any('error' not in line for line in of(claim, here, lines))
    return why_not(claim, here, bench) or (DONE if done else TO_DO)


def listing(claims, here, bench, lines):
    """A line for each claim: its name, its time, and whether it can be measured here."""
    wide, times = max(len(claim.name) for claim in claims), pace(here, lines)
    for claim in claims:
        expected = duration(60 * times * (claim.minutes(here['device']) or claim.gpu or claim.cpu))
        yield f'{claim.name:{wide}}  {expected:>6}  {claim.what}: {state(claim, here, bench, lines)}'


def measure(claim, bench, here, times=1):
    """The line of one claim, measured now, which may take so many times its estimate."""
    estimate = claim.minutes(here['device'])
    bench.begin(PATIENCE * estimate * max(1, times) + 1)
    line = {'claim': claim.name, 'command': claim.command, **{key: here[key] for key in (
        'machine', 'cores', 'threads', 'device', 'torch', 'driver')}, 'date': datetime.date.today().isoformat()}
    begin = time.perf_counter()
    try:
        figure, text, spread = claim.measure(bench, claim.command)
        line.update(figure=figure, text=text, spread=spread)
    except Failed as error:
        line['error'] = str(error)
    except Exception as error:  # what it printed or wrote is not what its reader expects; the others go on
        line['error'] = f'{type(error).__name__}: {error}'
    return {**line, 'estimate': estimate, 'seconds': round(time.perf_counter() - begin, 1)}


def run(claims, chosen, bench, here, minutes, path):
    """
    Measure those of the `chosen` claims that this machine can and that `path` does not have yet, as long as their
    estimates fit into so many minutes: in their order, but last those that failed before. Each becomes a line of
    `path`, and a cell of the table of all `claims` beside it. Returns whether all that were begun ended well.
    """
    end, lines, later, good = time.monotonic() + 60 * minutes, read(path), [], True
    states = {claim.name: state(claim, here, bench, lines) for claim in chosen}
    due = [claim for claim in chosen if states[claim.name] == TO_DO]
    due.sort(key=lambda claim: len(of(claim, here, lines)) > 0)
    done = sum(state == DONE for state in states.values())
    print(f'{here["machine"]}, PyTorch {here["torch"]}: {counted(len(due), "claim")} to measure, {done} '
          f'{"is" if done == 1 else "are"} done, {len(states) - done - len(due)} cannot be measured here'
          + ' (--list says why)' * (len(chosen) == len(claims)))
    if len(chosen) < len(claims):  # those that were named
        for name, reason in states.items():
            if reason not in (DONE, TO_DO):
                print(f'{name}: {reason}')
    for number, claim in enumerate(due, 1):
        times = pace(here, lines)
        expected = times * claim.minutes(here['device'])
        if time.monotonic() + 60 * expected > end + 1:  # a second, so that what takes all the minutes fits into them
            later.append(f'{claim.name} ({duration(60 * expected)})' if expected <= minutes else
                         f'{claim.name} (needs --minutes={math.ceil(expected)} at least)')
            continue
        print(f'{number} of {len(due)}: {claim.name} (about {duration(60 * expected)})')
        line = measure(claim, bench, here, times)
        append(path, line)
        lines.append(line)
        with write_whole(table_path(path)) as f:
            f.write('\n'.join(table(claims, lines)) + '\n')
        good = good and 'error' not in line
        print(f'    {cell(line)}')
    if later:
        print(f'left for the next call: {", ".join(later)}')
    if lines:
        print(f'{path} has the figures, {table_path(path)} the table; send {path}: CONTRIBUTING.md says how')
    return good


def text_of(root, given):
    """The path of tiny Shakespeare's text, `given` or where prepare.py keeps it. ValueError if `given` is not that."""
    if not given:
        return os.path.join(root, 'data', 'shakespeare_char', 'input.txt')
    path = os.path.expanduser(given)
    size = os.path.getsize(path) if os.path.isfile(path) else None
    wrong = ('is a folder' if os.path.isdir(path) else 'does not exist' if size is None else
             f'has {size:,} bytes' if size != SHAKESPEARE else '')
    if wrong:
        raise ValueError(f"input={given!r} {wrong}; it is to be tiny Shakespeare's text of {SHAKESPEARE:,} bytes, as "
                         'data/shakespeare_char/prepare.py downloads it')
    return os.path.abspath(path)


def remove_left_behind():
    """End what calls that were killed had started, and remove their folders: nobody holds their locks any more."""
    for path in glob.glob(os.path.join(tempfile.gettempdir(), f'{FOLDER}*', LOCK)):
        with contextlib.suppress(OSError, Locked):
            lock(path).release()
            processes.kill(os.path.dirname(path), None)
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)


@contextlib.contextmanager
def workplace(root, device, text):
    """A Bench in a folder of its own, which is removed at the end."""
    text = text_of(root, text)
    for name in ('SIGTERM', 'SIGHUP'):  # of `timeout`, or of a terminal that is closed: as Ctrl-C
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.default_int_handler)
    remove_left_behind()
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder:
        held = lock(os.path.join(folder, LOCK))
        try:
            yield Bench(root, folder, device, text)
        finally:
            held.release()
