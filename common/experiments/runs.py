"""
The state of every run in a queue: what the queue's file records, and what the run's process and its folder show. It
needs no torch and no numpy.
"""
import contextlib
import glob
import json
import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum

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
    attempts: int = 0               # that failed
    not_before: int | float = 0.0   # time.time() of the earliest next start
    wanted: State | None = None     # its state after the stop that was requested; None: no stop was
    error: str | None = None        # of the last attempt that failed
    started: int | float | None = None  # time.time() of the last start; None: the next start is from scratch
    out_dir: str = ''
    after: list = field(default_factory=list)  # names of the runs that must be done first
    pid: int | None = None
    start_time: str | None = None   # of the process, see process_start()
    slot: str | None = None         # its GPUs, as in CUDA_VISIBLE_DEVICES; None: not restricted
    words: list | None = None       # what followed `python train.py` at the last start
    max_iters: int = 0
    anew: bool = False              # it was done before; a retry must not resume that
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
            raise ValueError('it is just starting, or has just ended; look at its status, and try again')
        self.wanted = then
        os.kill(self.pid, signal.SIGTERM)

    def is_alive(self):
        """Whether the process that was started for this run still exists."""
        return self.pid is not None and process_start(self.pid) == self.start_time is not None

    def last_line(self):
        """The last line of the last attempt's output, or its last error: torchrun and advice may follow that."""
        lines = [line.strip() for line in tail(os.path.join(self.out_dir, 'log.txt')) if line.strip()]
        # an attempt begins with its command line
        first = max((i for i, line in enumerate(lines) if line.startswith('$ ')), default=-1) + 1
        errors = [line for line in lines[first:] if 'ChildFailedError' not in line
                  and re.match(r'train\.py: |out of memory|stopped: |[\w.]*Error\b', line)]
        return (errors or lines[first:] or ['it printed nothing'])[-1]

    def ended(self, how):
        """Whether the last line of metrics.jsonl says `how`, done or stopped, and is newer than the last start."""
        path = os.path.join(self.out_dir, 'metrics.jsonl')
        with contextlib.suppress(IndexError, ValueError):
            return how in json.loads(tail(path)[-1]) and os.path.getmtime(path) >= self.started
        return False

    def progress(self):
        """The newest figures in metrics.jsonl, and left_s, the seconds that are left; None where not known."""
        values = {}
        for line in tail(os.path.join(self.out_dir, 'metrics.jsonl')):
            with contextlib.suppress(ValueError):  # half a line: cut off by tail(), or still being written
                values.update(json.loads(line))
        figures = {key: values.get(key) for key in ('iter', 'loss', 'val_loss', 'tok_s', 'best_val_loss', 'train_s')}
        ms, at = values.get('ms'), values.get('iter')
        at_work = self.state == State.RUNNING or self.slurm == 'RUNNING'
        known = ms and at is not None and at_work
        return {**figures, 'left_s': max(0.0, (self.max_iters - at - 1) * ms / 1000) if known else None}

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
        # the option that a command needs for this list
        self.hint = '' if list_path == DEFAULT_LIST else f' --list={shlex.quote(list_path)}'
        self.path = os.path.join('results', re.sub(r'[^\w.-]+', '_', name) + '.json')

    def others(self):
        """A hint at the queues of other lists here, one of which may have been meant; '' if there are none."""
        names = [os.path.splitext(os.path.basename(path))[0] for path in glob.glob('results/*.json')
                 if path != self.path]
        return f'; other lists have run here: {", ".join(sorted(names))}; --list=FILE names one' if names else ''

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
        """{name: Run} for a block that may change it; no other process can until it ends and the file is written."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        lock = files.lock(f'{self.path}.lock', wait=True)
        try:
            runs = self.read()
            before = to_json(runs)
            yield runs
            if to_json(runs) != before:
                with files.write_whole(self.path) as f:
                    f.write(to_json(runs))
        finally:
            lock.release()

    def has_manager(self):
        return files.is_locked(f'{self.path}.manager')

    def lock_for_manager(self):
        """The lock that one manager at a time can hold. ValueError if another one does."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            return files.lock(f'{self.path}.manager')
        except files.Locked:
            raise ValueError('another run_manager.py works through this list already; status shows what it does'
                             ) from None


def from_json(name, values):
    """A Run from the queue's file. Unknown keys are ignored, missing ones have their defaults. ValueError names it."""
    try:
        return Run(**{key: values[key] for key in values.keys() & {one.name for one in fields(Run)}})
    except (ValueError, AttributeError) as error:
        raise ValueError(f'run {name!r}: {error}') from None


def to_json(runs):
    return json.dumps({name: asdict(run) for name, run in runs.items()}, indent=1)


def process_start(pid):
    """
    When a process started, as text. Together with the pid it identifies the process, because pids are used again. None
    if the process is gone, or a zombie: ended, but its parent has not fetched the exit code.
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
    """Whether some process trains in this folder."""
    return files.is_locked(os.path.join(out_dir, '.lock'))


def tail(path, size=2**16):
    """The lines in the last `size` bytes of a file; [] if there is no file."""
    with contextlib.suppress(FileNotFoundError), open(path, 'rb') as f:
        f.seek(max(0, os.path.getsize(path) - size))
        return f.read().decode(errors='replace').splitlines()
    return []


def status_lines(names, runs):
    """A table of the runs with these names, line by line."""
    rows = [(name, *runs[name].describe(runs)) for name in names]
    width = max([len(name) for name in names] + [4])
    yield f'{"name":{width}}  state'
    for name, state, text in rows:
        yield f'{name:{width}}  {state:11}  {text:.300}'.rstrip()
