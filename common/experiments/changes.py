"""
What a user changes in a queue from the command line: stop, retry, add, remove, repair. Each takes the options of its
command, with `root`, the folder of train.py, and the Queue. No torch.
"""
import os
import re
import shlex
import time

from common import files
from common.console import duration
from common.experiments import experiment_list, slurm, status
from common.experiments.runs import State, is_busy


def stop(options, queue):
    name = options.name
    # a job may be running by now, and has to save first, or it may have ended
    answers = slurm.ask({one: run for one, run in queue.read().items() if one == name})
    with queue.changing() as runs:
        slurm.update(runs, answers)
        run = queue.run(runs, name)
        if is_at_work(run, queue):
            if run.wanted is not None and not options.now:
                raise ValueError(is_stopping(run, name, queue))
            if not run.is_alive():
                raise ValueError(f'{name} is just starting, or has just ended; try again when its state has changed: '
                                 f'python run_manager.py status{queue.hint}')
            run.stop(then=State.STOPPED)
            if not options.now:
                print(f'{name} ends after its current iteration, with a checkpoint if it has got that far')
            elif end_now(run):
                print(f'{name} was killed, and has its last checkpoint if it has got that far')
                if not queue.has_manager():  # which would record it
                    run.state, run.wanted = State.STOPPED, None
            else:
                print(f'{name} was killed, but its process {run.pid} has not ended yet: it waits for a disk, perhaps')
        elif run.state in (State.QUEUED, State.RUNNING, State.SUBMITTED):
            if run.state == State.SUBMITTED:
                slurm.stop(run, options.now)
            elif run.state == State.RUNNING:  # torchrun's ranks outlive it if it was killed
                run.kill()
            run.state, run.wanted = State.STOPPED, None
            print(f'{name} was not running, and is out of the queue')
        else:
            raise ValueError(f'{name} is {run.state} already')
    print(f'to resume it: python run_manager.py retry {name}{queue.hint}')


def is_stopping(run, name, queue):
    """What a second `stop` says of a run that has not ended yet."""
    ago = f' {duration(time.time() - run.asked)} ago' if run.asked else ''
    then = ('The manager kills it when its time is over (--grace of `run`)' if queue.has_manager() else
            'No manager is running that would kill it')
    return (f'{name} was told to stop already{ago}; its process {run.pid} has not ended yet: it finishes its iteration '
            f'and writes a checkpoint. {then}; to kill it now, without a checkpoint: '
            f'python run_manager.py stop --now {name}{queue.hint}')


def end_now(run):
    """Kill a run. Whether its process has ended within 5 seconds."""
    run.kill()
    for _ in range(50):
        if not run.is_alive():
            return True
        time.sleep(0.1)
    return False


def is_at_work(run, queue):
    """Whether a run is `running` and has a process, or at least a manager that will see that it has none."""
    return run.state == State.RUNNING and (run.is_alive() or queue.has_manager())


def retry(options, queue):
    with queue.changing() as runs:
        listed = [one.name for one in experiment_list.read_lines(options.list)[0]]
        failed = [name for name in listed if name in runs and runs[name].state == State.FAILED]
        names = failed if options.failed else [options.name]
        for name in names:
            run = queue.run(runs, name)
            if name not in listed:
                words = [f'{name}:', *(f'after={other}' for other in run.after), *(run.words or [])]
                raise ValueError(f'the line of {name} is no longer in {options.list}; to put it there again: '
                                 f'python run_manager.py add{queue.hint} {shlex.join(words)}')
            if is_at_work(run, queue) or run.state == State.SUBMITTED:
                raise ValueError(f'{name} is {run.state}')
            if run.state == State.DONE:  # it begins from scratch; any other resumes
                run.started, run.anew = None, True
            vars(run).update(state=State.QUEUED, attempts=0, not_before=0.0, wanted=None, asked=None, error=None)
            print(f'{name} is in the queue again')
    if not names:
        print('nothing in the list has failed')
    elif not queue.has_manager():
        print(f'to start it: python run_manager.py run{queue.hint}')


def add(options, queue):
    """Put a line at the end of the list, if it is right there; a manager that works through the list takes it up."""
    words = options.words[options.words[:1] == ['--']:]
    if any(re.match('--list(=|$)', word) for word in words):
        raise ValueError('--list goes in front of the line, as in add --list=FILE NAME: config/small.py')
    if not os.path.isfile(options.list):
        raise ValueError(f'there is no list {options.list!r}; --list=FILE names one')
    with queue.locked():
        content, line = experiment_list.with_line(options.list, words)
        experiments = experiment_list.read_bytes(content, options.list, options.root)
        one, runs = experiments[-1], queue.read()
        if one.name in runs and runs[one.name].started and runs[one.name].words != one.words:
            raise ValueError(f'{one.name} has run already, with another line; put another name in front, as in '
                             f'{one.name}-2: ...')
        if clash := queue.clash(one):
            raise ValueError(clash)
        experiment_list.refuse(experiment_list.check([one], options.root, processes=1), options.list)
        with files.write_whole(options.list, 'wb') as f:
            f.write(content)
    print(f'{options.list}, line {one.line}: {line}')
    print('the manager that is running takes it up' if queue.has_manager() else
          f'to start it: python run_manager.py run{queue.hint}')


def remove(options, queue):
    """Take an experiment that does not run out of the list and the queue. Its folder stays."""
    name = options.name
    with queue.changing() as runs:
        experiments, _ = experiment_list.read_lines(options.list, options.root)
        one = next((one for one in experiments if one.name == name), None)
        run = queue.run(runs, name)
        busy = is_busy(run.out_dir)
        if is_at_work(run, queue) or run.state == State.SUBMITTED or run.state == State.RUNNING and busy:
            raise ValueError(f'{name} is {run.state}; first: python run_manager.py stop {name}{queue.hint}')
        if busy:
            raise ValueError(f'another process trains in {run.out_dir}; remove {name} when that has ended')
        if waiting := [other.name for other in experiments if name in other.after]:
            raise ValueError(f'{", ".join(waiting)} comes after {name}; remove that first')
        if one:
            with files.write_whole(options.list, 'wb') as f:
                f.write(experiment_list.without_line(options.list, one.line))
        runs.pop(name, None)
    kept = f'; what it wrote stays in {run.out_dir}' if os.path.exists(run.out_dir) else ''
    print(f'{name} is out of {options.list}{kept}')


def repair(options, queue):
    runs, aside = queue.repair(experiment_list.read(options.list, options.root, may_be_empty=True))
    print(f'the damaged file is {aside} now; these runs were found, and the rest of the list is queued:')
    print('\n'.join(status.status_lines([name for name, run in runs.items() if run.started], runs)))
