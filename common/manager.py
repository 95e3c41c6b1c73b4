"""
A list of experiments worked through on one machine: each started when there is a place for it, watched, started again
if it fails, gone on with if it was interrupted. What must outlive this process is in the queue's file.
"""
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from common import experiments, runstate

RESUMABLE = 75     # train.py's exit code after a signal and a checkpoint
ATTEMPTS = 3       # a run that fails is started again twice
PAUSE = 60         # seconds between
AT_ONCE = 20       # seconds: three experiments in a row that fail this soon have one reason, and end the queue


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
        self.failed_at_once = set()  # names, in a row; with three nothing more is started
        for name in ('SIGINT', 'SIGTERM'):
            signal.signal(getattr(signal, name), self.note)

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
            with self.queue.changing() as runs:
                for one in listed:
                    runs.setdefault(one.name, dict(runstate.NEW)).update(out_dir=one.out_dir, after=one.after)
                for name, run in runs.items():
                    if run['state'] == 'running':
                        self.look_after(name, run)
                    to_stop = self.interrupts >= 2 and run['state'] == 'running' and not run['wanted']
                    if to_stop and runstate.is_alive(run):
                        runstate.stop(run, then='queued')
            waiting = not self.interrupts and len(self.failed_at_once) < 3 and self.start_what_can(listed)
            runs = self.queue.read()
            running = {name: run for name, run in runs.items() if run['state'] == 'running'}
            if not running and not waiting:
                break
            show_progress(running)
            time.sleep(0.5)
        names = [one.name for one in listed]
        print('\n'.join(runstate.status_lines(names, runs)))
        if all(runs[name]['state'] == 'done' for name in names):
            return 0
        return RESUMABLE if self.interrupts else 1

    def read_again(self, listed, path):
        """The list as it is now; with a mistake in it, as it was."""
        try:
            new = experiments.read(path, self.root)
            known = {one.name: one.words for one in listed}
            experiments.check([one for one in new if known.get(one.name) != one.words], self.root, self.processes)
            return new
        except (ValueError, OSError) as error:
            say(f'{error}\n(the list as it was goes on)')
            return listed

    def start_what_can(self, listed):
        """Fill the free slots. True if an experiment is left that can still be started, now or later."""
        waiting = False
        for one in listed:
            with self.queue.changing() as runs:
                run = runs[one.name]
                if run['state'] != 'queued' or any(runs[name]['state'] in ('failed', 'stopped') for name in one.after):
                    continue
                taken = [other['slot'] for other in runs.values() if other['state'] == 'running']
                free = [slot for slot in self.slots if slot not in taken][:max(0, len(self.slots) - len(taken))]
                ready = all(runs[name]['state'] == 'done' for name in one.after) and run['not_before'] <= time.time()
                if not ready or not free or runstate.is_busy(one.out_dir):
                    waiting = True
                    continue
                words = experiments.command(one, self.root, self.processes, resumes=bool(run['started']))
                run.update(state='running', pid=None, slot=free[0], started=time.time(), wanted=None,
                           max_iters=one.settings['max_iters'])
            waiting = True
            self.start(one, words, free[0])  # it is in the file already: should this process end here, nothing is lost
        return waiting

    def start(self, one, words, slot):
        os.makedirs(one.out_dir, exist_ok=True)
        env = dict(os.environ, **({'CUDA_VISIBLE_DEVICES': slot} if slot else {}))
        with open(os.path.join(one.out_dir, 'log.txt'), 'a', encoding='utf-8') as log:
            print(f'$ {shlex.join(words)}', file=log, flush=True)
            child = subprocess.Popen([sys.executable, *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     env=env, start_new_session=True)  # Ctrl-C here is not for it
        self.children[one.name] = child
        with self.queue.changing() as runs:
            runs[one.name].update(pid=child.pid, start_time=runstate.start_time(child.pid))
        say(f'{one.name}: started{f" on GPU {slot}" if slot else ""}; python run_manager.py logs {one.name} -f')

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
        seconds = time.time() - run['started']
        if code in (0, None) and runstate.is_done(run, since=0.0 if code == 0 else run['started']):
            self.failed_at_once.clear()
            run.update(state='done', error=None)
            return say(f'{name}: done, {runstate.outcome(run)}')
        if run['wanted'] is not None:
            run.update(state=run['wanted'], wanted=None)
            return say(f'{name}: stopped' + ', with a checkpoint' * (code == RESUMABLE))
        if code in (RESUMABLE, None):
            run.update(state='queued', not_before=time.time() + (PAUSE if seconds < AT_ONCE and code else 0))
            return say(f'{name}: ended before it was done, and goes on from its checkpoint')
        if seconds >= AT_ONCE:
            self.failed_at_once.clear()
        self.failed_at_once.add(name)
        error = runstate.last_line(run)[:300] if code > 0 else f'killed by signal {-code}'
        attempts = run['attempts'] + 1
        run.update(state='failed' if attempts >= ATTEMPTS else 'queued', attempts=attempts, error=error,
                   not_before=time.time() + PAUSE)
        say(f'{name}: failed with exit code {code}: {error}')
        if len(self.failed_at_once) == 3:
            say(f'nothing more is started: three in a row failed within {AT_ONCE} seconds; the last said: {error}')


def say(text):
    """A line with the time of the day, over the one of show_progress."""
    width = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    print(f'{time.strftime("%H:%M:%S")} {text}'.ljust(width), flush=True)


def show_progress(running):
    """On a terminal, what runs now; the next line replaces it."""
    if sys.stdout.isatty():
        text = '; '.join(f'{name}: {runstate.brief(run)}' for name, run in running.items())
        width = shutil.get_terminal_size().columns - 1
        print(text.ljust(width)[:width], end='\r', flush=True)
