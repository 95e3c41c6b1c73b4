"""
A queue of experiments that survives the night. Each line of the list is what follows `python train.py`.

python run_manager.py run                     # config/experiment_list.conf from top to bottom, one at a time
python run_manager.py run --gpus=0,1          # one on each of these GPUs; with --nproc_per_node=8, 8 GPUs for each
python run_manager.py run --dry_run           # check the list, and print the commands
python run_manager.py run --launcher=slurm    # a job for each, through sbatch
python run_manager.py status                  # what each is doing; --json for programs
python run_manager.py logs NAME -f            # what it prints
python run_manager.py stop NAME               # with a checkpoint; retry goes on from there
python run_manager.py retry NAME              # or --failed: all that failed
python run_manager.py report --target=1.9     # a table, report.html and report.png; or of any folders: report out out-2
"""
import argparse
import contextlib
import json
import os
import select
import shlex
import subprocess
import sys
import time

from common.console import exit_on_error, forget_torchrun, protect_output
from common.experiments import experiment_list, report, slurm
from common.experiments.manager import Manager, say
from common.experiments.runs import DEFAULT_LIST, Queue, Run, State, status_lines

root = os.path.dirname(os.path.abspath(__file__))


def main():
    protect_output()
    forget_torchrun()
    options = parse_command_line()
    with exit_on_error():
        if not options.list:
            raise ValueError("--list='' names no file; leave it out, or name one")
        queue = Queue(options.list)
        if not os.path.exists(options.list):  # as for config files: in the working directory, else in the project
            options.list = os.path.join(root, options.list)
        sys.exit(options.function(options, queue))


def parse_command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name, function, help):
        command = commands.add_parser(name, help=help)
        command.add_argument('--list', type=os.path.expanduser, default=DEFAULT_LIST, help='experiments, one per line')
        command.set_defaults(function=function)
        return command

    command = add('run', run_queue, 'work through the list')
    command.add_argument('--gpus', default='', help='their numbers, as in 0,1; one experiment on each')
    command.add_argument('--nproc_per_node', type=int, default=1, help='GPUs for one experiment, through torchrun')
    command.add_argument('--launcher', choices=['local', 'slurm'], default='local')
    command.add_argument('--sbatch', default='', help="more options for sbatch, as in '--gres=gpu:1 --time=12:00:00'")
    command.add_argument('--dry_run', action='store_true', help='only check the list and print the commands')
    command = add('status', show_status, 'what each experiment is doing')
    command.add_argument('--json', action='store_true', help='for programs')
    command = add('logs', show_log, 'what an experiment printed')
    command.add_argument('name')
    command.add_argument('-f', '--follow', action='store_true', help='and go on with what it prints next')
    command = add('stop', stop_run, 'stop an experiment, with a checkpoint, or take it out of the queue')
    command.add_argument('name')
    command = add('retry', retry_runs, 'put an experiment back into the queue; it goes on from its last checkpoint')
    command.add_argument('name', nargs='?')
    command.add_argument('--failed', action='store_true', help='all that failed')
    command = add('report', make_report, 'compare runs: a table, report.html, report.png')
    command.add_argument('out_dir', nargs='*', type=os.path.expanduser, help='folders of runs; default: of the list')
    command.add_argument('--target', type=float, help='a validation loss: time and tokens to it')
    command.add_argument('--out', type=os.path.expanduser, default='report', help='writes OUT.html and OUT.png')
    command.add_argument('--serve', action='store_true', help='show the page on this machine, updated as runs go on')
    command.add_argument('--port', type=int, default=8080)
    return parser.parse_args()


def run_queue(options, queue):
    """Work through the list until everything is done, or submit it to Slurm. Returns the exit code."""
    if sys.platform == 'win32':
        raise ValueError('a queue needs processes and signals as Linux and macOS have them')
    experiments = experiment_list.read(options.list, root)
    slots = find_slots(options.gpus, options.nproc_per_node)
    runs = {one.name: Run() for one in experiments} | queue.read()
    left = [one for one in experiments if runs[one.name].state != State.DONE]
    for one in experiments:
        if runs[one.name].state == State.DONE and runs[one.name].words not in (None, one.words):
            print(f'{one.name}: its line has changed since it was done; to train it again from scratch: '
                  f'python run_manager.py retry {one.name}{queue.hint}')
    experiment_list.check(left, options.list, root, options.nproc_per_node)
    if options.dry_run:
        for one in left:
            print(shlex.join(experiment_list.command(one, root, options.nproc_per_node, runs[one.name].anew)))
        return 0
    queue.lock_for_manager()
    if options.launcher == 'slurm':
        return submit_all(left, queue, options)
    return Manager(queue, slots, options.nproc_per_node, root).work(experiments, options.list)


def find_slots(gpus, processes):
    """For each experiment that can run at the same time its GPUs, as in CUDA_VISIBLE_DEVICES, or None for any."""
    if processes < 1:
        raise ValueError(f'--nproc_per_node={processes} is below 1')
    if not gpus:
        return [None]
    numbers = gpus.split(',')
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f'--gpus={gpus} is not like 0,1')
    count = sum(line.startswith('GPU ') for line in subprocess.getoutput('nvidia-smi -L').splitlines())
    if any(int(number) >= count for number in numbers):
        raise ValueError(f'--gpus={gpus}, but nvidia-smi knows {count} GPUs here')
    if len(numbers) % processes:
        raise ValueError(f'--gpus={gpus}: {len(numbers)} GPUs are not a multiple of --nproc_per_node={processes}')
    return [','.join(numbers[i:i + processes]) for i in range(0, len(numbers), processes)]


def submit_all(experiments, queue, options):
    """Submit a Slurm job for each queued experiment whose prerequisites are done or submitted."""
    with queue.changing() as runs:
        slurm.update(runs)
    # prerequisites first
    for one in sorted(experiments, key=lambda one: len(experiment_list.ancestors(one, experiments))):
        job = None
        try:
            with queue.changing() as runs:  # written after each job, so that a later error cannot submit one twice
                run = runs.setdefault(one.name, Run(out_dir=one.out_dir))
                before = [runs[name] for name in one.after if runs[name].state != State.DONE]
                if run.state != State.QUEUED or any(other.state != State.SUBMITTED for other in before):
                    continue
                if not run.started:
                    experiment_list.begin(one)
                words = experiment_list.command(one, root, options.nproc_per_node, run.anew)
                job = slurm.submit(one.name, words, one.out_dir, [other.job for other in before], options.sbatch)
                run.job, run.slurm = job, 'PENDING'
                run.start(State.SUBMITTED, one)
        except BaseException:  # Ctrl-C, too
            if job:  # which is not recorded, and would be submitted again
                slurm.call('scancel', job)
            raise
        say(f'{one.name}: job {job}')


def show_status(options, queue):
    """Print a table of the experiments, or JSON."""
    runs = queue.read()
    if any(run.state == State.SUBMITTED for run in runs.values()):
        with queue.changing() as runs:
            slurm.update(runs)
    try:
        experiments = experiment_list.read(options.list)
    except ValueError as error:
        if not runs:
            raise
        print(f'run_manager.py: {error}', file=sys.stderr)
        experiments = []
    for one in experiments:
        runs.setdefault(one.name, Run(out_dir=one.out_dir)).after = one.after
    listed = [one.name for one in experiments]
    names = listed + [name for name, run in runs.items() if name not in listed and run.state != State.QUEUED]
    if options.json:
        print(json.dumps([{**vars(runs[name]), **runs[name].progress(), 'name': name,
                           'state': runs[name].describe(runs)[0]} for name in names], indent=1))
        return
    print('\n'.join(status_lines(names, runs)))
    if any(runs[name].state in (State.QUEUED, State.RUNNING) for name in names) and not queue.has_manager():
        print(f'no manager is running for this list: python run_manager.py run{queue.hint}{queue.others()}')


def find_run(runs, name, queue):
    if name not in runs:
        raise ValueError(f'{name!r} was not started yet; known: {", ".join(runs) or "none"}{queue.others()}')
    return runs[name]


def show_log(options, queue):
    path = os.path.join(find_run(queue.read(), options.name, queue).out_dir, 'log.txt')
    if not os.path.exists(path):
        raise ValueError(f'{options.name} has printed nothing yet')
    with contextlib.suppress(KeyboardInterrupt), open(path, encoding='utf-8', errors='replace') as f:
        while True:
            state = find_run(queue.read(), options.name, queue).state  # first, or its last lines may come in between
            print(f.read(), end='', flush=True)
            if not options.follow or state in (State.DONE, State.FAILED, State.STOPPED) or nobody_reads():
                return
            time.sleep(0.5)


def nobody_reads():
    """Whether stdout is a pipe whose reader has ended, as in `| head`, or a terminal that is gone."""
    if not hasattr(select, 'poll'):  # on Windows
        return False
    poll = select.poll()
    poll.register(1, 0)  # 0: nothing but errors
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def stop_run(options, queue):
    name = options.name
    with queue.changing() as runs:
        if name not in runs:  # new: the list is read only now, because a mistake in it must not prevent other stops
            runs.update({one.name: Run(out_dir=one.out_dir) for one in experiment_list.read(options.list)
                         if one.name == name})
        run = find_run(runs, name, queue)
        if run.state == State.SUBMITTED:
            slurm.update(runs)  # by now it may be running, and has to save first, or it may have ended
        if run.wanted is not None:
            raise ValueError(f'{name} was told to stop already')
        if is_at_work(run, queue):
            run.stop(then=State.STOPPED)
            print(f'{name} ends after its current iteration, with a checkpoint if it has got that far')
        elif run.state in (State.QUEUED, State.RUNNING, State.SUBMITTED):
            if run.state == State.SUBMITTED:
                slurm.stop(run)
            run.state = State.STOPPED
        else:
            raise ValueError(f'{name} is {run.state} already')
    print(f'to resume it: python run_manager.py retry {name}{queue.hint}')


def is_at_work(run, queue):
    """Whether a run is `running` and has a process, or at least a manager that will see that it has none."""
    return run.state == State.RUNNING and (run.is_alive() or queue.has_manager())


def retry_runs(options, queue):
    if not options.name and not options.failed:
        raise ValueError('retry needs a NAME, or --failed')
    with queue.changing() as runs:
        names = [name for name, run in runs.items() if run.state == State.FAILED] if options.failed else [options.name]
        for name in names:
            run = find_run(runs, name, queue)
            if is_at_work(run, queue) or run.state == State.SUBMITTED:
                raise ValueError(f'{name} is {run.state}')
            if run.state == State.DONE:  # it begins from scratch; any other resumes
                run.started, run.anew = None, True
            vars(run).update(state=State.QUEUED, attempts=0, not_before=0.0, wanted=None, error=None)
            print(f'{name} is in the queue again')
    if not names:
        print('nothing has failed')
    elif not queue.has_manager():
        print(f'to start it: python run_manager.py run{queue.hint}')


def make_report(options, queue):
    def folders():
        """Those of the command line, or else of the runs in the list as it is now."""
        if options.out_dir:
            return options.out_dir
        runs = queue.read()
        return [runs[one.name].out_dir for one in experiment_list.read(options.list)
                if one.name in runs and runs[one.name].started]

    report.main(folders, options, queue.hint)


if __name__ == '__main__':
    main()
