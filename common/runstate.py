"""
What a queue of experiments knows of each run: its own file, and what the run's process and folder say. A run is a dict:
state (queued, running, done, failed, stopped; submitted to Slurm), out_dir, pid, start_time, slot, started, ...
"""
import contextlib
import glob
import json
import os
import re
import shlex
import signal
import subprocess

from common.runlog import duration

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DEFAULT_LIST = 'config/experiment_list.conf'
# of a run that was not started yet
NEW = {'state': 'queued', 'attempts': 0, 'not_before': 0.0, 'wanted': None, 'error': None, 'started': None}


class Queue:
    """The runs by name, in results/NAME.json for the list config/NAME.conf. Several processes may change it in turn."""

    def __init__(self, list_path):
        name = os.path.splitext(os.path.relpath(list_path))[0].removeprefix(f'config{os.sep}')
        # what a command needs to mean this list
        self.hint = '' if list_path == DEFAULT_LIST else f' --list={shlex.quote(list_path)}'
        self.path = os.path.join('results', re.sub(r'[^\w.-]+', '_', name) + '.json')

    def others(self):
        """What to say of queues here that are of other lists, as one of them may have been meant; '' without any."""
        names = [os.path.splitext(os.path.basename(path))[0] for path in glob.glob('results/*.json')
                 if path != self.path]
        return f'; other lists have run here: {", ".join(sorted(names))}; --list=FILE names one' if names else ''

    def read(self):
        """All runs as they are now; {} if there is no file."""
        with contextlib.suppress(FileNotFoundError), open(self.path, encoding='utf-8') as f:
            return json.load(f)
        return {}

    @contextlib.contextmanager
    def changing(self):
        """All runs; what the block changes in them is in the file when it ends, whole, and nobody else's is lost."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(f'{self.path}.lock', 'w') as lock:
            locks(lock, wait=True)
            runs = self.read()
            before = json.dumps(runs)
            yield runs
            if json.dumps(runs) == before:
                return
            with open(f'{self.path}.tmp', 'w', encoding='utf-8') as f:
                json.dump(runs, f, indent=1)
                f.flush()
                os.fsync(f.fileno())
            os.replace(f'{self.path}.tmp', self.path)

    def has_manager(self):
        if not os.path.exists(f'{self.path}.manager'):
            return False
        with contextlib.suppress(ValueError), self.lock_for_manager():
            return False
        return True

    def lock_for_manager(self):
        """A lock that one process can hold. ValueError if another one does."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        lock = open(f'{self.path}.manager', 'w')
        if not locks(lock):
            lock.close()
            raise ValueError('another run_manager.py works through this list already; status shows what it does')
        return lock


def locks(file, wait=False):
    """Lock a file for as long as it is open; False if another process has, unless it is to `wait` for that."""
    if fcntl is None:
        raise ValueError('a queue needs file locks as Linux and macOS have them')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False


def start_time(pid):
    """
    When a process started: with its pid it names the process, as a later one may get the same pid. None if it is not
    alive; one that ended and that nobody asked for its exit code (a zombie) is not.
    """
    if os.path.isdir('/proc/self'):
        try:
            with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as f:
                fields = f.read().rpartition(')')[2].split()  # past its name, which may hold anything
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in 'ZX' else fields[19]  # in ticks since the machine started: proc(5), field 22
    said = subprocess.run(['ps', '-o', 'state=,lstart=', '-p', str(pid)], capture_output=True, text=True).stdout.split()
    return None if not said or said[0][0] == 'Z' else ' '.join(said[1:])


def is_alive(run):
    """Whether the process that was started for this run is still there."""
    return run.get('pid') is not None and start_time(run['pid']) == run['start_time'] is not None


def is_busy(out_dir):
    """Whether some process trains in this folder."""
    path = os.path.join(out_dir, '.lock')
    if not os.path.exists(path):
        return False
    with open(path) as lock:
        return not locks(lock)


def stop(run, then):
    """Ask a run to save and to end; `then` is its state afterwards. ValueError if it has no process."""
    if not is_alive(run):
        raise ValueError('it is just starting, or has just ended; look at its status, and try again')
    run['wanted'] = then
    os.kill(run['pid'], signal.SIGTERM)


def tail(path, size=2**16):
    """The last whole lines of a file, of `size` bytes at most; none if there is no file."""
    with contextlib.suppress(FileNotFoundError), open(path, 'rb') as f:
        f.seek(max(0, os.path.getsize(path) - size))
        return f.read().decode(errors='replace').splitlines()
    return []


def last_line(run):
    """The last line that a run printed; what it died of, if it says so before torchrun or advice follow."""
    lines = [line.strip() for line in tail(os.path.join(run['out_dir'], 'log.txt')) if line.strip()]
    begun = max((i for i, line in enumerate(lines) if line.startswith('$ ')), default=-1)  # of the last attempt
    errors = [line for line in lines[begun + 1:] if re.match(r'train\.py: |out of memory|stopped: |[\w.]*Error\b', line)
              and 'ChildFailedError' not in line]
    return (errors or lines[begun + 1:] or ['it printed nothing'])[-1]


def newest(run):
    """The newest of each figure in a run's metrics.jsonl, a dict, as far as its end has them."""
    values = {}
    for line in tail(os.path.join(run['out_dir'], 'metrics.jsonl')):
        with contextlib.suppress(ValueError):  # half a line, as it is being written or was cut off by the size
            values.update(json.loads(line))
    return values


def ended(run, how):
    """Whether metrics.jsonl ends with a line that says `how`, done or stopped, written since the run was started."""
    path = os.path.join(run['out_dir'], 'metrics.jsonl')
    with contextlib.suppress(IndexError, ValueError):
        return how in json.loads(tail(path)[-1]) and os.path.getmtime(path) >= run['started']
    return False


def progress(run):
    """{'iter', 'loss', 'val_loss', 'tok_s', 'left_s'} of a run, each None where it is not known."""
    values = newest(run)
    found = {key: values.get(key) for key in ('iter', 'loss', 'val_loss', 'tok_s', 'best_val_loss', 'train_s')}
    ms, at = values.get('ms'), values.get('iter')
    left = (run.get('max_iters', 0) - at - 1) * ms / 1000 if ms and at is not None else None
    at_work = run['state'] == 'running' or run.get('slurm') == 'RUNNING'
    found['left_s'] = max(0.0, left) if left is not None and at_work else None
    return found


def brief(run):
    """Where a running run is, in a few words."""
    now = progress(run)
    nothing = 'starting' if run['state'] == 'running' else 'nothing saved'
    parts = [f'{now["iter"]:,} of {run["max_iters"]:,}' if now['iter'] is not None else nothing]
    parts += [f'loss {now["loss"]:.3f}'] if now['loss'] is not None else []
    parts += [f'{now["tok_s"]:,.0f} tok/s'] if now['tok_s'] is not None else []
    parts += [f'{duration(now["left_s"])} left'] if now['left_s'] is not None else []
    return ', '.join(parts)


def outcome(run):
    now = progress(run)
    best = 'not known' if now['best_val_loss'] is None else f'{now["best_val_loss"]:.4f}'
    return f'best val loss {best} in {duration(now["train_s"] or 0)}'


def describe(run, runs):
    """(state, what there is to say about it) of a run among others, for people."""
    state, error = run['state'], run.get('error')
    missing = [name for name in run.get('after', ()) if runs.get(name, NEW)['state'] != 'done']
    if state == 'running':
        if is_alive(run) or run['pid'] is None:
            return state, brief(run) + (', asked to stop' if run['wanted'] else '')
        return 'interrupted', 'its process has ended; the next run looks how, and goes on with it'
    if state == 'done':
        return state, outcome(run)
    if state == 'failed':
        return state, error
    if state == 'submitted':
        return run.get('slurm', state).lower(), f'job {run["job"]}, {brief(run)}'
    if state == 'queued' and is_busy(run['out_dir']):
        return state, 'another process trains in its folder'
    if run['started']:
        return state, brief(run) + (f'; failed {run["attempts"]} times: {error}' if run['attempts'] else '')
    return state, ', '.join(f'after {name} ({runs.get(name, NEW)["state"]})' for name in missing)


def status_lines(names, runs):
    """A table of the runs with these names."""
    rows = [(name, *describe(runs.get(name, NEW), runs)) for name in names]
    width = max([len(name) for name in names] + [4])
    yield f'{"name":{width}}  state'
    for name, state, text in rows:
        yield f'{name:{width}}  {state:11}  {text:.300}'.rstrip()
