"""
A list of experiments worked through on one machine: each started when there is a place for it, watched, started again
if it fails, gone on with if it was interrupted. What must outlive this process is in the queue's file.
"""
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from common import experiments, runstate
from common.settings import RESUMABLE

ATTEMPTS = 3   # a run that fails is started again twice
PAUSE = 60     # seconds between
LOOK = 0.5     # seconds between two looks at what runs
AT_ONCE = 20   # seconds: three experiments in a row that fail this soon have one reason, and end the queue


class Manager:
    """One process that works through a list; there may be one at a time."""

    def __init__(self, queue, slots, processes, root):
        """
        slots: for each place that an experiment can run in, the GPUs as CUDA_VISIBLE_DEVICES has them, or None. root:
        the folder of train.py.
        """
        self.queue, self.slots, self.processes, self.root = queue, slots, processes, root
        self.children = {}  # name: Popen; an earlier manager's are not among them
        self.interrupts = 0
        self.busy = set()  # names that wait for a process that trains in their folder
        self.failed_at_once = set()  # names, in a row
        self.broken = False          # three of them: nothing more is started
        for name in ('SIGINT', 'SIGTERM'):
            signal.signal(getattr(signal, name), self.note)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it outlives its terminal

    def note(self, number, frame):
        """Ctrl-C: once, what runs may finish; twice, or SIGTERM: it is stopped, with a checkpoint."""
        self.interrupts = 2 if number == signal.SIGTERM else self.interrupts + 1

    def work(self, listed, path):
        """Work through `listed`, and what comes to it at `path`, until nothing is left to do. Returns the exit code."""
        changed, told = os.path.getmtime(path), False
        while True:
            if self.interrupts == 1 and not told:
                told = True
                say('what runs may finish, nothing more is started; Ctrl-C again stops it, with a checkpoint')
            if os.path.exists(path) and os.path.getmtime(path) != changed:
                changed = os.path.getmtime(path)
                listed = self.read_again(listed, path)
            self.look_after_all(listed)
            waiting = not self.interrupts and not self.broken and self.start_what_can(listed)
            runs = self.queue.read()
            running = {name: run for name, run in runs.items() if run['state'] == 'running'}
            if not running and not waiting:
                break
            show_progress(running)
            time.sleep(LOOK)
        names = [one.name for one in listed]
        print_lines('\n'.join(runstate.status_lines(names, runs)))
        if all(runs[name]['state'] == 'done' for name in names):
            return 0
        return RESUMABLE if self.interrupts else 1

    def read_again(self, listed, path):
        """The list as it is now; with a mistake in it, as it was."""
        try:
            new = experiments.read(path, self.root)
            known = {one.name: one.words for one in listed}
            changed = [one for one in new if known.get(one.name) != one.words]
            experiments.check(changed, path, self.root, self.processes)
            return new
        except (ValueError, OSError) as error:
            say(f'{error}\n(the list as it was goes on)')
            return listed

    def look_after_all(self, listed):
        """Note what is new in the list, and which runs have ended."""
        with self.queue.changing() as runs:
            for one in listed:
                run = runs.setdefault(one.name, dict(runstate.NEW, out_dir=one.out_dir))
                run['after'] = one.after
                if run['state'] == 'queued':
                    run['out_dir'] = one.out_dir
            for name, run in runs.items():
                if run['state'] == 'running':
                    self.look_after(name, run)
                to_stop = self.interrupts >= 2 and run['state'] == 'running' and not run['wanted']
                if to_stop and runstate.is_alive(run):
                    runstate.stop(run, then='queued')

    def start_what_can(self, listed):
        """Fill the free slots. True if an experiment is left that can still be started, now or later."""
        waiting, names = False, {one.name: one for one in listed}
        for one in listed:
            with self.queue.changing() as runs:
                run = runs[one.name]
                before = [runs[other.name]['state'] for other in experiments.ancestors(one, names)]
                if run['state'] != 'queued' or not set(before) <= {'queued', 'running', 'done'}:
                    continue
                waiting = True
                taken = [other['slot'] for other in runs.values() if other['state'] == 'running']
                free = [slot for slot in self.slots if not any(overlap(slot, other) for other in taken)]
                ready = set(before) <= {'done'} and run['not_before'] <= time.time()
                if not ready or not free:
                    continue
                if runstate.is_busy(one.out_dir):
                    if one.name not in self.busy:
                        say(f'{one.name}: another process trains in {one.out_dir}; waiting for its end')
                    self.busy.add(one.name)
                    continue
                fresh = not run['started']
                run.update(state='running', pid=None, slot=free[0], started=time.time(), wanted=None,
                           out_dir=one.out_dir, words=one.words, max_iters=one.settings['max_iters'])
                try:
                    if fresh:
                        experiments.begin(one)
                except OSError as error:
                    self.failed(one.name, run, f'not started: {error}')
                    continue
            # it is in the file already: should this process end here, nothing is lost
            self.start(one, free[0], run.get('anew'))
        return waiting

    def start(self, one, slot, anew):
        """Start the process of an experiment, from its beginning or its last state."""
        try:
            os.makedirs(one.out_dir, exist_ok=True)
            words = experiments.command(one, self.root, self.processes, anew)
            env = dict(os.environ, **({'CUDA_VISIBLE_DEVICES': slot} if slot else {}))
            with open(os.path.join(one.out_dir, 'log.txt'), 'a', encoding='utf-8') as log:
                print(f'$ {shlex.join(words)}', file=log, flush=True)
                child = subprocess.Popen([sys.executable, *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                         env=env, start_new_session=True)  # Ctrl-C here is not for it
        except OSError as error:
            with self.queue.changing() as runs:
                return self.failed(one.name, runs[one.name], f'not started: {error}')
        self.children[one.name] = child
        with self.queue.changing() as runs:
            runs[one.name].update(pid=child.pid, start_time=runstate.start_time(child.pid))
        where = f' on GPU {slot}' if slot else ''
        say(f'{one.name}: started{where}; python run_manager.py logs {one.name} -f{self.queue.hint}')

    def look_after(self, name, run):
        """Find out whether a run has ended, and how."""
        if name in self.children:
            code = self.children[name].poll()
            if code is None:
                return
            del self.children[name]
        else:  # an earlier manager started it, and nobody knows its exit code
            code = None
            starting = run['pid'] is None and time.time() < run['started'] + AT_ONCE  # it died before it noted the pid
            if starting or runstate.is_alive(run) or runstate.is_busy(run['out_dir']):
                return
        if code in (0, None) and runstate.ended(run, 'done'):
            self.failed_at_once.clear()
            run.update(state='done', error=None)
            say(f'{name}: done, {runstate.outcome(run)}')
        elif run['wanted'] is not None:
            run.update(state=run['wanted'], wanted=None)
            say(f'{name}: stopped' + ', with a checkpoint' * runstate.ended(run, 'stopped'))
        elif code in (RESUMABLE, None) or code != 0 and runstate.ended(run, 'stopped'):  # torchrun's code is 1
            at_once = time.time() < run['started'] + AT_ONCE
            run.update(state='queued', not_before=time.time() + (PAUSE if at_once and code else 0))
            say(f'{name}: ended before it was done, and goes on from its checkpoint')
        elif code == 0:
            self.failed(name, run, 'it ended without a last line in its metrics.jsonl')
        else:
            self.failed(name, run, f'killed by signal {-code}' if code < 0 else runstate.last_line(run)[:300])

    def failed(self, name, run, error):
        """Count a failure: it is tried again, or given up."""
        attempts = run['attempts'] + 1
        run.update(state='failed' if attempts >= ATTEMPTS else 'queued', attempts=attempts, error=error,
                   not_before=time.time() + PAUSE)
        say(f'{name}: failed: {error}')
        if time.time() >= run['started'] + AT_ONCE:
            self.failed_at_once.clear()
        else:
            self.failed_at_once.add(name)
        if len(self.failed_at_once) == 3 and not self.broken:
            self.broken = True
            say(f'nothing more is started: three in a row failed within {AT_ONCE} seconds; the last said: {error}')


def overlap(slot, other):
    """Whether two places for an experiment share a GPU, as CUDA_VISIBLE_DEVICES has them; None may use any."""
    return slot is None or other is None or bool(set(slot.split(',')) & set(other.split(',')))


def print_lines(text, **options):
    """Print, unless the terminal is gone."""
    with contextlib.suppress(OSError):
        print(text, flush=True, **options)


def say(text):
    """A line with the time of the day, over the one of show_progress."""
    width = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    print_lines(f'{time.strftime("%H:%M:%S")} {text}'.ljust(width))


def show_progress(running):
    """On a terminal, what runs now; the next line replaces it."""
    if sys.stdout.isatty():
        text = '; '.join(f'{name}: {runstate.brief(run)}' for name, run in running.items())
        width = shutil.get_terminal_size().columns - 1
        print_lines(text.ljust(width)[:width], end='\r')
