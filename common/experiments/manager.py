"""Runs a list on one machine: starts, retries, resumes. What must survive this process is in the queue's file."""
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from common.experiments import experiment_list
from common.experiments.runs import Run, State, is_busy, process_start, status_lines
from common.settings import RESUMABLE

ATTEMPTS = 3   # a run that fails is started again twice
PAUSE = 60     # seconds before that
LOOK = 0.5     # seconds between checks of the runs
AT_ONCE = 20   # seconds: three experiments in a row that fail this soon have a common cause and end the queue


class Manager:
    def __init__(self, queue, slots, processes, root):
        """slots: the GPUs of each experiment at a time, as in CUDA_VISIBLE_DEVICES, or None; processes: of each."""
        self.queue, self.slots, self.processes, self.root = queue, slots, processes, root
        self.children = {}           # name: Popen, without the runs that an earlier manager started
        self.interrupts = 0
        self.busy = set()            # names of experiments in whose folders other processes train
        self.failed_at_once = set()  # names, in a row
        self.broken = False          # three of those: nothing more is started
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.interrupt)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal does not end it

    def interrupt(self, number, frame):
        """First Ctrl-C: start nothing more. Second Ctrl-C, or SIGTERM: stop the runs, with a checkpoint."""
        self.interrupts = 2 if number == signal.SIGTERM else self.interrupts + 1

    def work(self, experiments, path):
        """Work through `experiments`, and those that are added to the list at `path`. Returns the exit code."""
        changed, told = os.path.getmtime(path), False
        while True:
            if self.interrupts == 1 and not told:
                told = True
                say('running experiments may finish, no more are started; Ctrl-C again stops them, with a checkpoint')
            try:
                if os.path.exists(path) and os.path.getmtime(path) != changed:
                    changed = os.path.getmtime(path)
                    experiments = self.read_again(experiments, path)
                self.update_all(experiments)
                waiting = not self.interrupts and not self.broken and self.start_all(experiments)
                runs = self.queue.read()
            except OSError as error:  # the disk is full, perhaps: the queue's file is as it was, and runs go on
                if self.interrupts:
                    raise
                say(f'{error}; trying again in {PAUSE} seconds')
                self.wait(PAUSE)
                continue
            running = {name: run for name, run in runs.items() if run.state == State.RUNNING}
            if not running and not waiting:
                break
            if sys.stdout.isatty():
                progress = '; '.join(f'{name}: {run.brief()}' for name, run in running.items())
                print_over(progress[:shutil.get_terminal_size().columns - 1], end='\r')
            time.sleep(LOOK)
        names = [one.name for one in experiments]
        print_over('\n'.join(status_lines(names, runs)))
        if all(runs[name].state == State.DONE for name in names):
            return 0
        return RESUMABLE if self.interrupts else 1

    def wait(self, seconds):
        """Wait so long, or until Ctrl-C."""
        end, before = time.time() + seconds, self.interrupts
        while time.time() < end and self.interrupts == before:
            time.sleep(LOOK)

    def read_again(self, experiments, path):
        """The list as it is now, or `experiments` if there is a mistake in it."""
        try:
            new = experiment_list.read(path, self.root)
            known = {one.name: one.words for one in experiments}
            changed = [one for one in new if known.get(one.name) != one.words]
            experiment_list.check(changed, path, self.root, self.processes)
            return new
        except (ValueError, OSError) as error:
            say(f'{error}\n(continuing with the list as it was)')
            return experiments

    def update_all(self, experiments):
        """Record what is new in the list and which runs have ended; pass a stop on to those that have not."""
        with self.queue.changing() as runs:
            for one in experiments:
                run = runs.setdefault(one.name, Run())
                run.after = one.after
                if run.state == State.QUEUED:
                    run.out_dir = one.out_dir
            for name, run in runs.items():
                if run.state == State.RUNNING:
                    self.update(name, run)
                if self.interrupts >= 2 and run.state == State.RUNNING and not run.wanted and run.is_alive():
                    run.stop(then=State.QUEUED)

    def update(self, name, run):
        """If a run has ended, record how."""
        code = None  # not known if an earlier manager started it
        if name in self.children:
            child = self.children[name]  # which stays there, as the queue's file may not be written this time
            code = child.poll()
            if code is None and run.pid is None:  # start() could not record it
                run.pid, run.start_time = child.pid, process_start(child.pid)
            if code is None:
                return
        # the earlier manager may have been killed before it recorded the pid
        elif run.is_alive() or is_busy(run.out_dir) or run.pid is None and time.time() < run.started + AT_ONCE:
            return
        if code in (0, None) and run.ended('done'):
            self.failed_at_once.clear()
            run.state, run.error = State.DONE, None
            say(f'{name}: done, {run.outcome()}')
        elif run.wanted is not None:
            run.state, run.wanted = run.wanted, None
            say(f'{name}: stopped' + (', with a checkpoint' if run.ended('stopped') else ''))
        elif code in (RESUMABLE, None) or code != 0 and run.ended('stopped'):  # torchrun exits with 1 instead
            at_once = time.time() < run.started + AT_ONCE
            run.state, run.not_before = State.QUEUED, time.time() + (PAUSE if at_once and code else 0)
            say(f'{name}: ended before it was done, and goes on from its checkpoint')
        elif code == 0:
            self.failed(name, run, 'it ended without its last line in metrics.jsonl')
        else:
            self.failed(name, run, f'killed by signal {-code}' if code < 0 else run.last_line()[:300])

    def start_all(self, experiments):
        """Fill the free slots. Returns whether an experiment is left that can be started now or later."""
        waiting = False
        for one in experiments:
            with self.queue.changing() as runs:
                run = runs[one.name]
                before = {runs[other.name].state for other in experiment_list.ancestors(one, experiments)}
                if run.state != State.QUEUED or not before <= {State.QUEUED, State.RUNNING, State.DONE}:
                    continue
                waiting = True
                taken = [other.slot for other in runs.values() if other.state == State.RUNNING]
                free = [slot for slot in self.slots if not any(overlap(slot, other) for other in taken)]
                ready = before <= {State.DONE} and run.not_before <= time.time()
                if not ready or not free or not self.claim(one, run, free[0]):
                    continue
            self.start(one, run)
        return waiting

    def claim(self, experiment, run, slot):
        """Record that an experiment runs before its process exists: a kill then loses nothing. False if it cannot."""
        name = experiment.name
        if is_busy(experiment.out_dir):
            if name not in self.busy:
                say(f'{name}: another process trains in {experiment.out_dir}; waiting for it to end')
            self.busy.add(name)
            return False
        from_scratch = not run.started
        self.children.pop(name, None)
        run.start(State.RUNNING, experiment)
        run.pid, run.slot = None, slot
        try:
            if from_scratch:
                experiment_list.begin(experiment)
            return True
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            self.failed(name, run, f'not started: {error}')
            return False

    def start(self, experiment, run):
        """Start the process of an experiment that was claimed: from scratch, or from its last state."""
        name, out_dir, slot = experiment.name, experiment.out_dir, run.slot
        try:
            os.makedirs(out_dir, exist_ok=True)
            words = experiment_list.command(experiment, self.root, self.processes, run.anew)
            env = dict(os.environ, **({'CUDA_VISIBLE_DEVICES': slot} if slot else {}))
            with open(os.path.join(out_dir, 'log.txt'), 'ab', buffering=0) as log:
                with contextlib.suppress(OSError):  # a full disk: the run is worth more than its log
                    log.write(f'$ {shlex.join(words)}\n'.encode())
                child = self.children[name] = subprocess.Popen(
                    [sys.executable, *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                    start_new_session=True)  # Ctrl-C here does not reach it
        except (OSError, ValueError) as error:
            with self.queue.changing() as runs:
                return self.failed(name, runs[name], f'not started: {error}')
        with self.queue.changing() as runs:
            runs[name].pid, runs[name].start_time = child.pid, process_start(child.pid)
        where = f' on GPU {slot}' if slot else ''
        say(f'{name}: started{where}; python run_manager.py logs {name} -f{self.queue.hint}')

    def failed(self, name, run, error):
        """Record a failure: the run is tried again, or given up."""
        run.attempts += 1
        run.state = State.FAILED if run.attempts >= ATTEMPTS else State.QUEUED
        run.error, run.not_before = error, time.time() + PAUSE
        say(f'{name}: failed: {error}')
        at_once = time.time() < run.started + AT_ONCE
        self.failed_at_once = self.failed_at_once | {name} if at_once else set()
        if len(self.failed_at_once) == 3 and not self.broken:
            self.broken = True
            say(f'nothing more is started: three in a row failed within {AT_ONCE} seconds; the last said: {error}')


def overlap(slot, other):
    """Whether two slots share a GPU; None may use any."""
    return slot is None or other is None or bool(set(slot.split(',')) & set(other.split(',')))


def print_over(text, end='\n'):
    """Print over the line of progress."""
    width = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    print(text.ljust(width), end=end, flush=True)


def say(text):
    print_over(f'{time.strftime("%H:%M:%S")} {text}')
