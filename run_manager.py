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
import json
import os
import shlex
import subprocess
import sys
import time

from common import experiments, report, runstate, slurm
from common.manager import Manager, say

root = os.path.dirname(os.path.abspath(__file__))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name, help):
        command = commands.add_parser(name, help=help)
        command.add_argument('--list', default=runstate.DEFAULT_LIST, help='the experiments, one a line')
        return command

    command = add('run', 'work through the list')
    command.add_argument('--gpus', default='', help='their numbers, as in 0,1; one experiment on each')
    command.add_argument('--nproc_per_node', type=int, default=1, help='GPUs for one experiment, through torchrun')
    command.add_argument('--launcher', choices=['local', 'slurm'], default='local')
    command.add_argument('--sbatch', default='', help="more words for sbatch, as in '--gres=gpu:1 --time=12:00:00'")
    command.add_argument('--dry_run', action='store_true', help='check the list and print the commands, no more')
    add('status', 'what each experiment is doing').add_argument('--json', action='store_true', help='for programs')
    command = add('logs', 'what an experiment printed')
    command.add_argument('name')
    command.add_argument('-f', '--follow', action='store_true', help='and what it goes on to print')
    add('stop', 'stop an experiment, with a checkpoint, or take it out of the queue').add_argument('name')
    command = add('retry', 'back into the queue; it goes on from its last checkpoint')
    command.add_argument('name', nargs='?')
    command.add_argument('--failed', action='store_true', help='all that failed')
    report.add_arguments(add('report', 'compare runs: a table, report.html, report.png'))
    options = parser.parse_args()
    queue = runstate.Queue(options.list)
    options.list = find_list(options.list)
    try:
        sys.exit(COMMANDS[options.command](options, queue))
    except (ValueError, OSError) as error:
        print(f'run_manager.py: {error}', file=sys.stderr)
        sys.exit(2)


def find_list(path):
    """A list as it is named: from here, or in the project's folder, as config files are."""
    return path if os.path.exists(path) else os.path.join(root, path)


def find_slots(gpus, processes):
    """The GPUs of each place for an experiment, as CUDA_VISIBLE_DEVICES has them; [None]: one place, whatever it is."""
    if processes < 1:
        raise ValueError(f'--nproc_per_node={processes} is below 1')
    numbers = gpus.split(',') if gpus else []
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f'--gpus={gpus} is not like 0,1')
    if not numbers:
        return [None]
    try:
        said = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=True).stdout
        here = sum(line.startswith('GPU ') for line in said.splitlines())
    except (OSError, subprocess.CalledProcessError):
        here = 0
    if any(int(number) >= here for number in numbers):
        raise ValueError(f'--gpus={gpus}, but nvidia-smi knows {here} GPUs here')
    if len(numbers) % processes:
        raise ValueError(f'--gpus={gpus} are {len(numbers)}, which --nproc_per_node={processes} does not divide')
    return [','.join(numbers[i:i + processes]) for i in range(0, len(numbers), processes)]


def run_queue(options, queue):
    """Start what can be started, watch what runs, until all is done. Returns the exit code."""
    listed = experiments.read(options.list, root)
    slots = find_slots(options.gpus, options.nproc_per_node)
    runs = queue.read()
    for one in listed:
        run = runs.get(one.name, runstate.NEW)
        if run['state'] == 'done' and run.get('words', one.words) != one.words:
            print(f'{one.name}: its line has changed since it was done; python run_manager.py retry {one.name}'
                  f'{queue.hint} trains it anew')
    left = [one for one in listed if runs.get(one.name, runstate.NEW)['state'] != 'done']
    experiments.check(left, options.list, root, options.nproc_per_node)
    if options.dry_run:
        for one in left:
            anew = runs.get(one.name, runstate.NEW).get('anew')
            print(shlex.join(experiments.command(one, root, options.nproc_per_node, anew)))
        return 0
    with queue.lock_for_manager():
        if options.launcher == 'slurm':
            return submit(left, queue, options)
        return Manager(queue, slots, options.nproc_per_node, root).work(listed, options.list)


def submit(listed, queue, options):
    """A Slurm job for each experiment that is queued."""
    names = {one.name: one for one in listed}
    with queue.changing() as runs:
        slurm.update(runs)
    # those that others wait for come first
    for one in sorted(listed, key=lambda one: len(experiments.ancestors(one, names))):
        with queue.changing() as runs:  # one after the other: what was submitted is noted, whatever happens next
            run = runs.setdefault(one.name, dict(runstate.NEW, out_dir=one.out_dir))
            before = [runs[name] for name in one.after if runs[name]['state'] != 'done']
            if run['state'] != 'queued' or any(other['state'] != 'submitted' for other in before):
                continue
            if not run['started']:
                experiments.begin(one)
            words = experiments.command(one, root, options.nproc_per_node, run.get('anew'))
            job = slurm.submit(one.name, words, one.out_dir, [other['job'] for other in before], options.sbatch)
            run.update(state='submitted', job=job, started=time.time(), out_dir=one.out_dir, words=one.words,
                       max_iters=one.settings['max_iters'], slurm='PENDING')
            say(f'{one.name}: job {job}')
    return 0


def show_status(options, queue):
    if any(run['state'] == 'submitted' for run in queue.read().values()):
        with queue.changing() as runs:
            slurm.update(runs)
    runs = queue.read()
    try:
        listed = experiments.read(options.list)
    except ValueError as error:
        if not runs:
            raise
        print(f'run_manager.py: {error}', file=sys.stderr)
        listed = []
    for one in listed:
        runs.setdefault(one.name, dict(runstate.NEW, out_dir=one.out_dir))['after'] = one.after
    known = [one.name for one in listed]
    names = known + [name for name, run in runs.items() if name not in known and run['state'] != 'queued']
    if options.json:
        rows = [{**runs[name], **runstate.progress(runs[name]), 'name': name,
                 'state': runstate.describe(runs[name], runs)[0]} for name in names]
        print(json.dumps(rows, indent=1))
        return 0
    print('\n'.join(runstate.status_lines(names, runs)))
    if any(runs[name]['state'] in ('queued', 'running') for name in names) and not queue.has_manager():
        print(f'nobody works through this list now: python run_manager.py run{queue.hint}{queue.others()}')
    return 0


def find_run(runs, name, queue):
    if name not in runs:
        raise ValueError(f'{name!r} was not started yet; known are {", ".join(runs) or "none"}{queue.others()}')
    return runs[name]


def show_log(options, queue):
    path = os.path.join(find_run(queue.read(), options.name, queue)['out_dir'], 'log.txt')
    if not os.path.exists(path):
        raise ValueError(f'{options.name} has printed nothing yet')
    with open(path, encoding='utf-8', errors='replace') as f:
        try:
            while True:
                sys.stdout.write(f.read())
                sys.stdout.flush()
                ended = find_run(queue.read(), options.name, queue)['state'] in ('done', 'failed', 'stopped')
                if not options.follow or ended:
                    return 0
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0


def stop(options, queue):
    with queue.changing() as runs:
        if options.name not in runs:  # in the list alone; what runs can be stopped whatever became of the list
            runs.update({one.name: dict(runstate.NEW, out_dir=one.out_dir)
                         for one in experiments.read(options.list) if one.name == options.name})
        run = find_run(runs, options.name, queue)
        if run['state'] == 'submitted':
            slurm.update(runs)  # whether it runs by now, and saves first, or has ended
        if run['wanted'] is not None:
            raise ValueError(f'{options.name} is told to stop already')
        if run['state'] == 'running' and (runstate.is_alive(run) or queue.has_manager()):
            runstate.stop(run, then='stopped')
            print(f'{options.name} saves and ends after the iteration at hand, if it has got that far')
        elif run['state'] == 'submitted':
            slurm.stop(run)
            run['state'] = 'stopped'
        elif run['state'] in ('queued', 'running'):  # not, or no longer, at work
            run['state'] = 'stopped'
        else:
            raise ValueError(f'{options.name} is {run["state"]} already')
    print(f'python run_manager.py retry {options.name}{queue.hint} goes on with it')
    return 0


def retry(options, queue):
    with queue.changing() as runs:
        names = [name for name, run in runs.items() if run['state'] == 'failed'] if options.failed else [options.name]
        if names == [None]:
            raise ValueError('retry what? a NAME, or --failed')
        for name in names:
            run = find_run(runs, name, queue)
            at_work = run['state'] == 'running' and (runstate.is_alive(run) or queue.has_manager())
            if at_work or run['state'] == 'submitted':
                raise ValueError(f'{name} is {run["state"]}')
            if run['state'] == 'done':  # it begins anew; what was not done goes on
                run.update(started=None, anew=True)
            run.update(runstate.NEW, started=run['started'])
            print(f'{name} is in the queue again')
    if not names:
        print('nothing has failed')
    elif not queue.has_manager():
        print(f'python run_manager.py run{queue.hint} starts it')
    return 0


def make_report(options, queue):
    def folders():
        """Those that were named, else those of the list as it is now."""
        runs = queue.read()
        return options.out_dir or [runs[one.name]['out_dir'] for one in experiments.read(options.list)
                                   if runs.get(one.name, runstate.NEW)['started']]

    return report.main(folders, options)


COMMANDS = {'run': run_queue, 'status': show_status, 'logs': show_log, 'stop': stop, 'retry': retry,
            'report': make_report}
if __name__ == '__main__':
    main()
