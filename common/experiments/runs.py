"""The runs of a queue: what the queue's file records, and what their processes and folders show. No torch, no numpy."""
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from common import files
from common.console import duration

DEFAULT_LIST = 'config/experiment_list.conf'


class State(StrEnum):
    QUEUED = 'queued'
    RUNNING = 'running'      # the manager started its process
    SUBMITTED = 'submitted'  # Slurm has a job for it
    DONE = 'done'
    STOPPED = 'stopped'      # by the user
    FAILED = 'failed'        # in every attempt


@dataclass
class Run:
    """What the queue's file records of one experiment."""
    state: State = State.QUEUED
    attempts: int = 0               # failed ones
    not_before: int | float = 0.0   # time.time() of the earliest next start
    wanted: State | None = None     # its state after the requested stop; None: no stop was requested
    error: str | None = None        # of the last failed attempt
    started: int | float | None = None  # time.time() of the last start; None: the next start is from scratch
    out_dir: str = ''
    after: list = field(default_factory=list)  # names of the runs that must be done first
    pid: int | None = None
    start_time: str | None = None   # of the process, see process_start()
    slot: str | None = None         # its GPUs, as in CUDA_VISIBLE_DEVICES; None: not restricted
    words: list | None = None       # what followed `python train.py` at the last start
    max_iters: int = 0
    anew: bool = False              # a retry of a finished run, which must not be resumed
    job: str | None = None          # number of the Slurm job
    slurm: str | None = None        # state of the Slurm job

    def __post_init__(self):
        """ValueError for a value that does not fit its field."""
        for key, state in (('state', self.state), ('wanted', self.wanted)):
            if state is not None and state not in list(State):
                raise ValueError(f'{key}={state!r} is not one of {", ".join(State)}')
            setattr(self, key, state and State(state))
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, one.type):
                raise ValueError(f'{one.name}={value!r} is not of type {getattr(one.type, "__name__", one.type)}')

    def start(self, state, experiment):
        """Record that `experiment` is started now, in this state."""
        self.state, self.started, self.wanted = state, time.time(), None
        self.out_dir, self.words = experiment.out_dir, experiment.words
        self.max_iters = experiment.settings['max_iters']

    def stop(self, then):
        """Ask the process to save and end; `then` is the state after it. ValueError if there is no process."""
        if not self.is_alive():
            raise ValueError('it is just starting, or has just ended; check its status, and try again')
        self.wanted = then
        os.kill(self.pid, signal.SIGTERM)

    def is_alive(self):
        """Whether the process that was started for this run still exists."""
        return self.pid is not None and process_start(self.pid) == self.start_time is not None

    def last_line(self):
        """The last error of the last attempt, even if advice or torchrun's output follows it; else its last line."""
        lines = [line.strip() for line in tail(os.path.join(self.out_dir, 'log.txt')) if line.strip()]
        # an attempt begins with its command line
        first = max((i for i, line in enumerate(lines) if line.startswith('$ ')), default=-1) + 1
        errors = [line for line in lines[first:] if 'ChildFailedError' not in line
                  and re.match(r'train\.py: |out of memory|stopped: |[\w.]*Error\b', line)]
        return (errors or lines[first:] or ['it printed nothing'])[-1]

    def ended(self, how):
        """Whether the last whole line of metrics.jsonl says `how`, done or stopped, and is newer than the start."""
        path = os.path.join(self.out_dir, 'metrics.jsonl')
        with contextlib.suppress(IndexError, OSError):
            return bool(list(whole_lines(tail(path)))[-1].get(how)) and os.path.getmtime(path) >= self.started
        return False

    def progress(self):
        """The newest figures in metrics.jsonl, and left_s, the seconds that are left; None where not known."""
        values = {}
        for line in whole_lines(tail(os.path.join(self.out_dir, 'metrics.jsonl'))):
            values.update(line)
        if values.get('ms') and (self.state == State.RUNNING or self.slurm == 'RUNNING'):
            values['left_s'] = max(0.0, (self.max_iters - values['iter'] - 1) * values['ms'] / 1000)
        keys = 'iter', 'loss', 'val_loss', 'tok_s', 'best_val_loss', 'train_s', 'left_s'
        return {key: values.get(key) for key in keys}

    def brief(self):
        """How far the run is, in a few words."""
        now = self.progress()
        nothing = 'starting' if self.state == State.RUNNING else 'nothing saved'
        parts = [f'{now["iter"]:,} of {self.max_iters:,}' if now['iter'] is not None else nothing]
        parts += [f'loss {now["loss"]:.3f}'] if now['loss'] is not None else []
        parts += [f'{now["tok_s"]:,.0f} tok/s'] if now['tok_s'] is not None else []
        parts += [f'{duration(now["left_s"])} left'] if now['left_s'] is not None else []
        return ', '.join(parts)

    def outcome(self):
        now = self.progress()
        best = 'not known' if now['best_val_loss'] is None else f'{now["best_val_loss"]:.4f}'
        return f'best val loss {best} in {duration(now["train_s"] or 0)}'

    def describe(self, runs):
        """(state, details) for people; `runs`: all runs of the queue."""
        if self.state == State.RUNNING:
            if self.is_alive() or self.pid is None:
                return self.state, self.brief() + (', asked to stop' if self.wanted else '')
            return 'interrupted', 'its process has ended; the next run finds out how, and resumes it'
        if self.state == State.DONE:
            return self.state, self.outcome()
        if self.state == State.FAILED:
            return self.state, self.error or ''
        if self.state == State.SUBMITTED:
            return (self.slurm or self.state).lower(), f'job {self.job}, {self.brief()}'
        if self.state == State.QUEUED and is_busy(self.out_dir):
            return self.state, 'another process trains in its folder'
        if self.started:
            failures = f'; failed {self.attempts} times: {self.error}' if self.attempts else ''
            return self.state, self.brief() + failures
        states = {name: runs[name].state if name in runs else State.QUEUED for name in self.after}
        return self.state, ', '.join(f'after {name} ({state})' for name, state in states.items() if state != State.DONE)


class Queue:
    """The runs by name, in results/NAME.json for the list config/NAME.conf. Several processes may change it in turn."""

    def __init__(self, list_path):
        name = os.path.splitext(os.path.relpath(list_path))[0].removeprefix(f'config{os.sep}')
        self.hint = '' if list_path == DEFAULT_LIST else f' --list={shlex.quote(list_path)}'  # in suggested commands
        self.path = os.path.join('results', re.sub(r'[^\w.-]+', '_', name) + '.json')

    def others(self):
        """The lists with other queues here, as one of them may have been meant; '' if there are none."""
        names = sorted(path.stem for path in Path('results').glob('*.json') if str(path) != self.path)
        return f'; other lists have run here: {", ".join(names)}; --list=FILE names one' if names else ''

    def read(self):
        """{name: Run} as the file has them now; {} if there is none. ValueError if it is damaged."""
        try:
            with open(self.path, encoding='utf-8') as f:
                return {name: from_json(name, values) for name, values in json.load(f).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise ValueError(f'{self.path} is damaged ({error}); correct it, or delete it to run its whole list again'
                             ) from None

    @contextlib.contextmanager
    def changing(self):
        """{name: Run}, which the block may change. It is written at the end; other processes wait until then."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        lock = files.lock(f'{self.path}.lock', wait=True)
        try:
            runs = self.read()
            yield runs
            if runs != self.read():
                with files.write_whole(self.path) as f:
                    json.dump(runs, f, indent=1, default=vars)
        finally:
            lock.release()

    def has_manager(self):
        return files.is_locked(f'{self.path}.manager')

    def lock_for_manager(self):
        """Become the one manager of the list, until this process ends. ValueError if there is one already."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            self.lock = files.lock(f'{self.path}.manager')
        except files.Locked:
            raise ValueError('another run_manager.py is running for this list already; status shows what it does'
                             ) from None


def from_json(name, values):
    """A Run from the queue's file. Unknown keys are ignored, missing ones take defaults. ValueError names the run."""
    try:
        return Run(**{key: values[key] for key in values.keys() & {one.name for one in fields(Run)}})
    except (ValueError, AttributeError) as error:
        raise ValueError(f'run {name!r}: {error}') from None


def process_start(pid):
    """
    When a process started, as text. Together with the pid it identifies the process, because pids are reused. None if
    the process is gone, or a zombie: ended, but its parent has not fetched the exit code.
    """
    if os.path.isdir('/proc/self'):
        try:
            with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as f:
                stat = f.read().rpartition(')')[2].split()  # after the name, which may hold spaces and parentheses
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if stat[0] in 'ZX' else stat[19]  # clock ticks since boot: field 22 of proc(5)
    stat = subprocess.run(['ps', '-o', 'state=,lstart=', '-p', str(pid)], capture_output=True, text=True).stdout.split()
    return None if not stat or stat[0][0] == 'Z' else ' '.join(stat[1:])


def is_busy(out_dir):
    """Whether a process is training in this folder. False if that cannot be seen now: train.py looks again."""
    with contextlib.suppress(OSError):
        return files.is_locked(os.path.join(out_dir, '.lock'))
    return False


def tail(path):
    """The lines in the last 64 KiB of a file; [] if it is not there, or cannot be read now."""
    with contextlib.suppress(OSError), open(path, 'rb') as f:
        f.seek(max(0, os.path.getsize(path) - 2**16))
        return f.read().decode(errors='replace').splitlines()
    return []


def is_figure(value):
    """Whether a value is a number that a run can reach: neither NaN, nor infinite, nor of a thousand digits."""
    return isinstance(value, (int, float)) and abs(value) < 1e18


def whole_lines(lines):
    """
    The lines of a metrics.jsonl as {key: figure or None}, each with an `iter`. A line that a crash damaged, or that
    another program wrote, is left out, and so is what is no figure in the others.
    """
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            values = values if isinstance(values, dict) else {}
            if is_figure(values.get('iter')):
                yield {key: value for key, value in values.items() if value is None or is_figure(value)}


def status_lines(names, runs):
    """A table of the runs with these names, line by line."""
    rows = [('name', 'state', ''), *((name, *runs[name].describe(runs)) for name in names)]
    width = max(len(row[0]) for row in rows)
    for name, state, text in rows:
        yield f'{name:{width}}  {state:11}  {text:.300}'.rstrip()
