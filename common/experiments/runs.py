"""A run of a queue: what is recorded of it, and what its process and its folder show. No torch, no numpy."""
import contextlib
import json
import os
import re
import signal
import time
from dataclasses import dataclass, field, fields
from enum import StrEnum

from common import files, processes
from common.console import duration
from common.processes import process_start


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
    asked: int | float | None = None  # time.time() of that request
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
    missing: int | float | None = None  # time.time() since when Slurm does not know the job
    listed_in: str | None = None    # the list that it comes from

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
            if isinstance(value, (int, float)) and not is_figure(value):
                raise ValueError(f'{one.name}={value!r:.20} is out of range')
        for key, values in (('after', self.after), ('words', self.words or [])):
            if not all(isinstance(value, str) for value in values):
                raise ValueError(f'{key}={values!r} is not of type list of str')
        if not is_path(self.out_dir):
            raise ValueError(f'out_dir={self.out_dir!r} cannot be the name of a folder')
        if self.state in (State.RUNNING, State.SUBMITTED) and self.started is None:
            raise ValueError(f'state={self.state!s}, but started is missing')
        if self.state == State.SUBMITTED and self.job is None:
            raise ValueError(f'state={self.state!s}, but job is missing')

    def start(self, state, experiment):
        """
        Record that `experiment` is started now, in this state. OSError or ValueError, and nothing recorded, if its
        folder cannot be made. An empty file there, .begun, says since when the queue uses it: older states are not its.
        """
        begun = os.path.join(experiment.out_dir, '.begun')
        if not self.started or not os.path.exists(begun):
            os.makedirs(experiment.out_dir, exist_ok=True)
            open(begun, 'w').close()
        self.state, self.started = state, time.time()
        self.wanted = self.asked = self.missing = None
        self.out_dir, self.words = experiment.out_dir, experiment.words
        self.max_iters = experiment.settings['max_iters']

    def stop(self, then):
        """Ask the process to save and end; `then` is the state after it."""
        self.wanted, self.asked = then, time.time()
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, signal.SIGTERM)

    def kill(self):
        """End all of its processes at once, without a checkpoint."""
        processes.kill(self.out_dir, self.started, self.pid if self.is_alive() else None)

    def is_alive(self):
        """Whether the process that was started for this run still exists."""
        return self.pid is not None and process_start(self.pid) == self.start_time is not None

    def output(self):
        """The last lines that the last attempt printed; [] if they cannot be read now."""
        lines = []
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in tail(os.path.join(self.out_dir, 'log.txt')) if line.strip()]
        # an attempt begins with its command line
        return lines[max((i for i, line in enumerate(lines) if line.startswith('$ ')), default=-1) + 1:]

    def last_line(self):
        """The last error of the last attempt, even if advice or torchrun's output follows it; else its last line."""
        lines = self.output()
        errors = [line for line in lines if 'ChildFailedError' not in line
                  and re.match(r'train\.py: |out of memory|stopped: |[\w.]*Error\b', line)]
        return (errors or lines or ['it printed nothing'])[-1]

    def says_mistake(self):
        """Whether torchrun, which itself ends with 1, says that a process of the last attempt ended with 2."""
        return any(re.match(r'exitcode +: 2 ', line) for line in self.output())

    def ended(self, how):
        """Whether the last whole line of metrics.jsonl says `how`, done or stopped, and is newer than the start."""
        path = os.path.join(self.out_dir, 'metrics.jsonl')
        with contextlib.suppress(IndexError, OSError):
            return bool(list(whole_lines(tail(path)))[-1].get(how)) and os.path.getmtime(path) >= self.started
        return False

    def progress(self):
        """
        The newest figures in metrics.jsonl, left_s, the seconds that are left, and `unreadable`, why the file cannot be
        read; None where not known.
        """
        values = {}
        try:
            for line in whole_lines(tail(os.path.join(self.out_dir, 'metrics.jsonl'))):
                values.update(line)
        except OSError as error:
            values['unreadable'] = str(error)
        if values.get('ms') and (self.state == State.RUNNING or self.slurm == 'RUNNING'):
            values['left_s'] = max(0.0, (self.max_iters - values['iter'] - 1) * values['ms'] / 1000)
        keys = 'iter', 'loss', 'val_loss', 'tok_s', 'best_val_loss', 'train_s', 'left_s', 'unreadable'
        return {key: values.get(key) for key in keys}

    def brief(self):
        """How far the run is, in a few words."""
        now = self.progress()
        if now['unreadable']:
            return now['unreadable']
        nothing = 'starting' if self.state == State.RUNNING else 'nothing saved'
        parts = [f'{now["iter"]:,} of {self.max_iters:,}' if now['iter'] is not None else nothing]
        parts += [f'loss {now["loss"]:.3f}'] if now['loss'] is not None else []
        parts += [f'{now["tok_s"]:,.0f} tok/s'] if now['tok_s'] is not None else []
        parts += [f'{duration(now["left_s"])} left'] if now['left_s'] is not None else []
        return ', '.join(parts)

    def outcome(self):
        now = self.progress()
        if now['unreadable']:
            return now['unreadable']
        best = 'not known' if now['best_val_loss'] is None else f'{now["best_val_loss"]:.4f}'
        return f'best val loss {best}, {duration(now["train_s"] or 0)} of training'

    def describe(self, runs):
        """(state, details) for people; `runs`: all runs of the queue."""
        if self.state == State.RUNNING:
            if self.is_alive() or self.pid is None:
                ago = f' {duration(time.time() - self.asked)} ago' if self.asked else ''
                return self.state, self.brief() + (f', asked to stop{ago}' if self.wanted else '')
            if self.wanted == State.STOPPED:  # as the next run records it
                return self.wanted, self.brief()
            return 'interrupted', 'its process has ended; the next run finds out how, and resumes it'
        if self.state == State.DONE:
            return self.state, self.outcome()
        if self.state == State.FAILED:
            return self.state, self.error or ''
        if self.state == State.SUBMITTED:
            gone = ', which has left the queue; Slurm does not say yet how it ended' if self.missing else ''
            return (self.slurm or self.state).lower(), f'job {self.job}{gone}, {self.brief()}'
        if self.state == State.QUEUED and is_busy(self.out_dir):
            return self.state, 'another process trains in its folder'
        if self.started or self.attempts:
            failures = f'; failed {self.attempts} times: {self.error}' if self.attempts else ''
            return self.state, self.brief() + failures
        states = {name: runs[name].state if name in runs else State.QUEUED for name in self.after}
        return self.state, ', '.join(f'after {name} ({state})' for name, state in states.items() if state != State.DONE)


def is_busy(out_dir):
    """Whether a process is training in this folder. False if that cannot be seen now: train.py looks again."""
    with contextlib.suppress(OSError):
        return files.is_locked(os.path.join(out_dir, '.lock'))
    return False


def is_path(text):
    """Whether a file can have this name: no NUL, no half of a character."""
    try:
        return b'\0' not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def tail(path):
    """The lines in the last 64 KiB of a file; [] if it is not there. OSError if it cannot be read now."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(path, 'rb') as f:
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
