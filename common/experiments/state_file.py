"""
The runs of a list by name, in results/NAME.json for the list config/NAME.conf or NAME.conf. Several processes may
change them in turn. No torch, no numpy.
"""
import contextlib
import json
import os
import re
import shlex
from dataclasses import fields
from pathlib import Path

from common import files, processes
from common.experiments import experiment_list, naming
from common.experiments.runs import Run, State, is_busy

DEFAULT_LIST = 'config/experiment_list.conf'
FOLDER = 'results'  # of all state files, and of each experiment without an out_dir of its own
LONGEST = 60        # characters in the name of a new state file


class Damaged(ValueError):
    """A state file that cannot be understood."""


class Queue:
    """
    The state file of a list. Each run in it says which list it comes from, so that config/a.conf and a.conf never share
    one: the list that comes second gets a hash behind its name. The file of an earlier version, whose runs do not say
    so, belongs to the list that uses its name first.
    """

    def __init__(self, typed, path=None):
        """typed: the list as on the command line, which suggested commands repeat; path: where it is, if elsewhere."""
        self.hint = '' if typed == DEFAULT_LIST else f' --list={shlex.quote(typed)}'
        self.list = identity(path or typed)
        name = state_name(typed)  # as all versions named it
        plain = name.lstrip('._') if name.startswith('.') else name  # a file that begins with a dot is hidden
        own = in_folder(f'{plain[:LONGEST - 9]}-{naming.short_hash(self.list)}')
        is_free = len(plain) <= LONGEST and not os.path.exists(in_folder(plain))
        there = [path for path in state_files() if list_of(path) == self.list]
        there += [path for path in map(in_folder, (plain, name)) if os.path.exists(path) and self.may_use(path)]
        self.path = there[0] if there else in_folder(plain) if is_free else own

    def may_use(self, path):
        """Whether no other list that still exists has used this state file."""
        lists = list_of(path)
        return lists in (None, self.list) or not os.path.exists(lists)

    def others(self):
        """The lists with other queues here, as one of them may have been meant; '' if there are none."""
        lists = sorted(list_of(path) or guessed_list(path) for path in self.other_files())
        return f'; other lists have run here: {", ".join(lists)}; --list=FILE names one' if lists else ''

    def run(self, runs, name):
        """One of the runs, to which one in the list is added if it is new. ValueError if there is none of that name."""
        listed = {}
        if name not in runs:
            with contextlib.suppress(ValueError, OSError):  # a list that is no text must not prevent a stop
                listed = {one.name: one for one in experiment_list.read_lines(self.list)[0]}
        if name in listed:
            runs[name] = Run(out_dir=listed[name].out_dir, after=listed[name].after)
        if name not in runs:
            known = ', '.join(runs | listed) or 'none'
            raise ValueError(f'no experiment is called {name!r}; known: {known}{self.others()}')
        return runs[name]

    def other_files(self):
        return [path for path in state_files() if path != self.path]

    def clash(self, experiment):
        """Which other list has results in the folder of an experiment that was not started yet, as text; else None."""
        for path in self.other_files():
            with contextlib.suppress(ValueError, OSError):  # its own commands say what is wrong with it
                for name, run in read(path).items():
                    if run.started and naming.overlap(run.out_dir, experiment.out_dir):
                        other = list_of(path) or guessed_list(path)
                        renamed = (f'; if this list was {other}: {shlex.join(["mv", path, self.path])}'
                                   if not os.path.exists(other) and not os.path.exists(self.path) else '')
                        return (f'out_dir={experiment.out_dir!r} has what {name} of the list {other} wrote; put '
                                f'another name in front, as in {experiment.name}-2: ..., or another --out_dir{renamed}')
        return None

    def read(self):
        """{name: Run} as the file has them now; {} if there is none. Damaged if it cannot be understood."""
        try:
            runs = read(self.path)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Damaged(f'{self.path} is damaged ({error}); nothing was changed. To keep it as '
                          f'{os.path.basename(self.path)}.damaged, and to find the runs again by what is in their '
                          f'folders: python run_manager.py repair{self.hint}') from None
        if not all(run.listed_in in (None, self.list) or self.may_use(self.path) for run in runs.values()):
            raise ValueError(f'another list uses {self.path} since a moment ago; type the command again')
        return runs

    @contextlib.contextmanager
    def locked(self):
        """Other processes that change the runs, or the list, wait until the block ends."""
        os.makedirs(FOLDER, exist_ok=True)
        lock = files.lock(f'{self.path}.lock', wait=True)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def changing(self):
        """{name: Run}, which the block may change. It is written at the end; other processes wait until then."""
        with self.locked():
            runs = self.read()
            yield runs
            self.write(runs)

    def write(self, runs):
        """Write the runs if they have changed. The caller holds the lock."""
        for run in runs.values():
            run.listed_in = self.list
        if runs != self.read():
            with files.write_whole(self.path) as f:
                json.dump(runs, f, indent=1, default=vars)

    def repair(self, experiments):
        """
        Put a damaged file aside and find the runs again: first what can be understood of it, then what is in the
        folders. Returns ({name: Run}, where the damaged file is now). ValueError if it is not damaged.
        """
        with self.locked():
            try:
                self.read()
            except Damaged:
                runs = read_what_can_be(self.path)
            else:
                raise ValueError(f'{self.path} is not damaged' if os.path.exists(self.path)
                                 else f'there is no {self.path}; nothing has run yet')
            for one in experiments:
                runs.setdefault(one.name, found_again(one))
            aside = files.free_name(f'{self.path}.damaged')
            os.rename(self.path, aside)
            self.write(runs)
        return runs, aside

    def has_manager(self):
        return files.is_locked(f'{self.path}.manager')

    def lock_for_manager(self):
        """Become the one manager of the list, until this process ends. ValueError if there is one already."""
        os.makedirs(FOLDER, exist_ok=True)
        try:
            self.lock = files.lock(f'{self.path}.manager')
        except files.Locked:
            raise ValueError('another run_manager.py is running for this list already; status shows what it does'
                             ) from None


def in_folder(name):
    return os.path.join(FOLDER, f'{name}.json')


def state_files():
    """All that there are here."""
    with contextlib.suppress(OSError):
        return sorted(path for path in (os.path.join(FOLDER, name) for name in os.listdir(FOLDER))
                      if path.endswith('.json') and os.path.isfile(path))
    return []


def identity(path):
    """A list's real path, relative if it is below the working directory: then that may be moved with its results."""
    real, here = os.path.realpath(path), os.path.realpath('.')
    return os.path.relpath(real, here) if real.startswith(os.path.join(here, '')) else real


def state_name(path):
    name = os.path.splitext(os.path.relpath(path))[0].removeprefix(f'config{os.sep}')
    return re.sub(r'[^\w.-]+', '_', name)


def read(path):
    """{name: Run} of a state file. ValueError if it is damaged."""
    return {name: from_json(name, values) for name, values in read_json(path).items()}


def read_json(path):
    """The JSON object in a file. ValueError if it is none."""
    try:
        values = json.loads(Path(path).read_text(encoding='utf-8'))
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    except ValueError as error:
        raise ValueError(str(error) if os.path.getsize(path) else 'it is empty') from None
    if not isinstance(values, dict):
        raise ValueError('it is not a JSON object')
    return values


def from_json(name, values):
    """A Run from the queue's file. Unknown keys are ignored, missing ones take defaults. ValueError names the run."""
    if not isinstance(values, dict):
        raise ValueError(f'run {name!r}: {values!r:.50} is not a JSON object')
    try:
        return Run(**{key: values[key] for key in values.keys() & {one.name for one in fields(Run)}})
    except ValueError as error:
        raise ValueError(f'run {name!r}: {error}') from None


def read_what_can_be(path):
    """{name: Run} of those runs in a damaged state file that can be understood."""
    runs = {}
    with contextlib.suppress(ValueError):
        for name, values in read_json(path).items():
            with contextlib.suppress(ValueError):
                runs[name] = from_json(name, values)
    return runs


def found_again(experiment):
    """The Run of an experiment by what is in its folder. What the queue began there has a file .begun."""
    run = Run(out_dir=experiment.out_dir, after=experiment.after, max_iters=experiment.settings['max_iters'])
    with contextlib.suppress(FileNotFoundError):
        run.started = os.path.getmtime(os.path.join(run.out_dir, '.begun'))
    run.pid, run.start_time, started = processes.oldest(run.out_dir)
    run.started = started or run.started
    if run.started:
        runs = run.pid or is_busy(run.out_dir)
        run.state = State.DONE if run.ended('done') else State.RUNNING if runs else State.QUEUED
    return run


def list_of(path):
    """The list that uses a state file; None if that is not known."""
    with contextlib.suppress(ValueError, OSError):
        lists = [values.get('listed_in') for values in read_json(path).values() if isinstance(values, dict)]
        return next((one for one in lists if isinstance(one, str)), None)
    return None


def guessed_list(path):
    """The list that an earlier version's state file, or a damaged one, is of, by its name; else the file itself."""
    name = Path(path).stem
    return next((one for one in (f'config/{name}.conf', f'{name}.conf') if os.path.exists(one)), path)
