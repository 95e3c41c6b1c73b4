"""
Runs a list on one machine: starts, retries, resumes. What must survive this process is in the queue's file. It is no
general queue such as pueue: it reads in a run's folder whether it is done or was saved, and resumes it.
"""
import contextlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from common import processes
from common.console import cut, duration, pad, visible
from common.experiments import experiment_list, slots
from common.experiments.runs import Run, State, is_busy
from common.experiments.state_file import Damaged
from common.experiments.status import status_lines
from common.processes import process_start
from common.settings import RESUMABLE

MISTAKE = 2    # exit code of a run that cannot work as its line and this machine are: it would only fail again
ATTEMPTS = 3   # a run that fails is started again twice: a third failure in a row is seldom chance
PAUSE = 60     # seconds before that: a disk or a GPU that was gone for a moment may be back
GRACE = 300    # seconds that a run which was asked to stop has for its iteration and its checkpoint
LOOK = 0.5     # seconds between checks of the runs
AT_ONCE = 20   # seconds: three experiments in a row that fail this soon have a common cause and end the queue


class Manager:
    def __init__(self, queue, gpus, processes, root, jobs=1, grace=GRACE):
        """
        gpus: of each slot, as in CUDA_VISIBLE_DEVICES, or None; processes: of each experiment; jobs: how many of them
        share a slot; grace: seconds until a run that was asked to stop is killed.
        """
        self.queue, self.slots, self.processes, self.root = queue, gpus, processes, root
        self.jobs, self.grace = jobs, grace
        self.environment = {}        # of each run, beside this process's
        if each := jobs > 1 and slots.threads(jobs * len(self.slots) * processes):
            self.environment['OMP_NUM_THREADS'] = str(each)
            say(f'{jobs} experiments share {"a GPU" if self.slots[0] else "the machine"}; OMP_NUM_THREADS={each}')
        self.recorded = False        # whether the queue's file has the experiments in the list
        self.mistakes = ''           # in the list, which is read again until there are none
        self.children = {}           # name: Popen, without the runs that an earlier manager started
        self.killed = {}             # name: time.time() of its SIGKILL
        self.interrupts = 0
        self.busy = set()            # names of experiments in whose folders other processes train
        self.failed_at_once = set()  # names, in a row
        self.broken = False          # three of those: nothing more is started
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.interrupt)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal does not end it

    def interrupt(self, number, frame):
        """First Ctrl-C: start nothing more. Second, or SIGTERM: stop the runs, with a checkpoint. More: kill them."""
        self.interrupts = max(self.interrupts + 1, 2 if number == signal.SIGTERM else 1)

    def work(self, experiments, path, seen):
        """Work through the list at `path`: `experiments` when its signature() was `seen`. Returns the exit code."""
        self.experiments, self.path, self.seen = experiments, path, seen
        told = 0
        while True:
            told = self.tell(told)
            try:
                self.update_all()
                waiting = not self.interrupts and not self.broken and self.start_all()
                runs = self.queue.read()
            except (OSError, Damaged) as error:  # a full disk, perhaps: the queue's file is as it was, and runs go on
                if self.interrupts:
                    self.end_children()
                    raise
                say(f'{error}; trying again in {PAUSE} seconds')
                self.wait(PAUSE)
                continue
            running = [name for name, run in runs.items() if run.state == State.RUNNING and not self.is_stuck(name)]
            if not running and not waiting:
                break
            if sys.stdout.isatty():
                print_over('; '.join(f'{name}: {runs[name].brief()}' for name in running), end='\r')
            time.sleep(LOOK)
        names = [one.name for one in self.experiments if one.name in runs]
        print_over('\n'.join(status_lines(names, runs)))
        if not self.mistakes and all(runs[name].state == State.DONE for name in names):
            return 0
        return RESUMABLE if self.interrupts else 1

    def tell(self, told):
        """Say what the interrupts so far mean, if that was not said yet. Returns how many have been told."""
        now = self.interrupts  # a signal may come while this is said
        if now > told:
            say(('running experiments may finish, no more are started; Ctrl-C again stops them, with a checkpoint',
                 f'running experiments end after their current iteration, with a checkpoint; those that have not in '
                 f'{self.grace:g} seconds are killed; Ctrl-C again kills them now',
                 'killing the running experiments')[min(now, 3) - 1])
        return now

    def end_children(self):
        """Stop the runs after a second interrupt, kill them after a third, when the queue's file cannot be written."""
        for child in self.children.values():
            if self.interrupts >= 2 and child.poll() is None:
                child.terminate() if self.interrupts == 2 else child.kill()

    def is_stuck(self, name):
        """Whether a run is still there 10 s after it was killed, waiting for a disk, and the manager is to end."""
        return self.interrupts and time.time() > self.killed.get(name, math.inf) + 10

    def wait(self, seconds):
        """Wait so long, or until Ctrl-C."""
        end, before = time.time() + seconds, self.interrupts
        while time.time() < end and self.interrupts == before:
            time.sleep(LOOK)

    def read_again(self):
        """Take up the list as it is now, but for its lines with mistakes, and those that come after them."""
        self.read_at, before = time.time(), self.mistakes
        try:
            experiments, mistakes = experiment_list.read_lines(self.path, self.root)
            wrong = {line for line, _ in mistakes}
            known = {one.name: one.words for one in self.experiments}
            changed = [one for one in experiments if one.line not in wrong and known.get(one.name) != one.words]
            mistakes += experiment_list.check(changed, self.root, self.processes)
            wrong = {line for line, _ in mistakes}
            wrong |= {one.line for one in changed if None in wrong}  # all together have no room on the disk
            self.experiments = [one for one in experiments if wrong.isdisjoint(
                {one.line, *(other.line for other in experiment_list.ancestors(one, experiments))})]
            self.recorded = False
            experiment_list.refuse(mistakes, self.path)
            self.mistakes = ''
        except (ValueError, OSError) as error:
            self.mistakes = str(error)
        if self.mistakes not in ('', before):
            say(f'{self.mistakes}\n(continuing without what is wrong; the list is read again)')

    def update_all(self):
        """Record what is new in the list and which runs have ended; pass a stop on to those that have not."""
        with self.queue.changing() as runs:  # in which `add` and `remove` cannot change the list
            now = signature(self.path)
            if now and (now != self.seen or self.mistakes and time.time() > self.read_at + PAUSE):
                self.seen = now
                self.read_again()
            for one in self.experiments:
                if not self.recorded:
                    runs.setdefault(one.name, Run())
                run = runs.get(one.name, Run())  # not there if it was removed, and the list cannot be read now
                run.after = one.after
                if run.state == State.QUEUED:
                    run.out_dir = one.out_dir
            for name, run in runs.items():
                if run.state == State.RUNNING:
                    self.update(name, run)
                if self.interrupts >= 2 and run.state == State.RUNNING and not run.wanted and run.is_alive():
                    run.stop(then=State.QUEUED)
                if run.state == State.RUNNING and run.wanted:
                    self.end_overdue(name, run)
        self.recorded = True

    def end_overdue(self, name, run):
        """Kill a run that was asked to stop and has not ended in time. One that a debugger holds, or a dead disk."""
        run.asked = run.asked or time.time()
        if name not in self.killed and (self.interrupts >= 3 or time.time() > run.asked + self.grace):
            self.killed[name] = time.time()
            run.kill()
            say(f'{name}: killed, as it had not ended {duration(time.time() - run.asked)} after it was asked to stop; '
                'it can resume from its last checkpoint')

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
        elif run.is_alive() or run.pid is None and time.time() < run.started + AT_ONCE:
            return
        elif is_busy(run.out_dir) and (run.pid is None or not processes.marked(run.out_dir, run.started)):
            return
        done = code in (0, None) and run.ended('done')
        if not done:  # torchrun's ranks and data workers outlive it if it was killed
            run.kill()
        if done:
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
        elif code == MISTAKE or self.processes > 1 and run.says_mistake():
            self.failed(name, run, f'{run.last_line()[:300]} (that would only fail again; once it is fixed: '
                                   f'python run_manager.py retry {name}{self.queue.hint})', for_good=True)
        elif code == 0:
            self.failed(name, run, 'it ended without its last line in metrics.jsonl')
        else:
            self.failed(name, run, f'killed by signal {-code}' if code < 0 else run.last_line()[:300])

    def start_all(self):
        """Fill the free slots. Returns whether an experiment is left that can be started now or later."""
        waiting, claimed = False, []
        with self.queue.changing() as runs:
            for one in self.experiments:
                run = runs.get(one.name)  # None: removed just now
                before = {runs[other.name].state for other in experiment_list.ancestors(one, self.experiments)
                          if other.name in runs}
                if not run or run.state != State.QUEUED or not before <= {State.QUEUED, State.RUNNING, State.DONE}:
                    continue
                waiting = True
                taken = [other.slot for other in runs.values() if other.state == State.RUNNING]
                sharing = {slot: sum(slots.overlap(slot, other) for other in taken) for slot in self.slots}
                slot = min(sharing, key=sharing.get)
                paused = time.time() < run.not_before <= time.time() + PAUSE  # no longer, whatever the clock was set to
                ready = before <= {State.DONE} and not paused and sharing[slot] < self.jobs
                if ready and self.claim(one, run, slot):
                    claimed.append((one, run))
        for one, run in claimed:
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
        if not run.started and (clash := self.queue.clash(experiment)):
            self.failed(name, run, f'not started: {clash}', for_good=True)
            return False
        try:
            run.start(State.RUNNING, experiment)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            self.failed(name, run, f'not started: {error}')
            return False
        run.pid, run.slot = None, slot
        self.children.pop(name, None)
        self.killed.pop(name, None)
        return True

    def start(self, experiment, run):
        """Start the process of an experiment that was claimed: from scratch, or from its last state."""
        name, out_dir, slot = experiment.name, experiment.out_dir, run.slot
        try:
            os.makedirs(out_dir, exist_ok=True)
            words = experiment_list.command(experiment, self.root, self.processes, run.anew)
            env = {**os.environ, **self.environment, processes.MARK: processes.mark(out_dir, run.started),
                   **({'CUDA_VISIBLE_DEVICES': slot} if slot else {})}
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

    def failed(self, name, run, error, for_good=False):
        """Record a failure: the run is tried again, or given up."""
        run.attempts += 1
        run.state = State.FAILED if for_good or run.attempts >= ATTEMPTS else State.QUEUED
        run.error, run.not_before = error, time.time() + PAUSE
        say(f'{name}: failed: {error}')
        at_once = not run.started or time.time() < run.started + AT_ONCE
        self.failed_at_once = self.failed_at_once | {name} if at_once else set()
        if len(self.failed_at_once) == 3 and not self.broken:
            self.broken = True
            say(f'nothing more is started: three in a row failed within {AT_ONCE} seconds; the last said: {error}')


def signature(path):
    """What changes when a file does; None if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        stat = os.stat(path)
        return stat.st_mtime_ns, stat.st_ino, stat.st_size
    return None


def print_over(text, end='\n'):
    """Print a text where the line of progress is. With end='\\r' it is that line, cut to what the terminal holds."""
    columns = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    text = visible(text)
    print(pad(cut(text, columns) if end == '\r' else text, columns), end=end, flush=True)


def say(text):
    print_over(f'{time.strftime("%H:%M:%S")} {text}')
