"""
A queue of experiments that survives the night. Each line of the list is what follows `python train.py`.

python run_manager.py run                     # config/experiment_list.conf from top to bottom, one at a time
python run_manager.py run --gpus=0,1          # one on each of these GPUs; with --nproc_per_node=8, 8 GPUs for each
python run_manager.py run --jobs=2            # two at once, on each GPU or on this machine
python run_manager.py run --dry_run           # check the list, and print the commands
python run_manager.py run --launcher=slurm    # a job for each, through sbatch
python run_manager.py status                  # what each is doing; --watch: again and again, --json for programs
python run_manager.py logs NAME -f            # what it prints; -n 50: the last 50 lines
python run_manager.py stop NAME               # with a checkpoint; retry goes on from there; --now kills one that hangs
python run_manager.py retry NAME              # or --failed: all that failed
python run_manager.py add NAME: config/small.py --seed=2   # a line for the list, which a running manager takes up
python run_manager.py remove NAME             # out of the list; its folder stays
python run_manager.py report --target=1.9     # a table, report.html and report.png; or of any folders: report out out-2
python run_manager.py curve out-quickstart    # is this loss normal, and if not, why; or --against=out-2
"""
import argparse
import itertools
import json
import os
import shlex
import sys

from common import console
from common.console import exit_on_error, forget_torchrun, protect_output
from common.experiments import changes, curve, experiment_list, report, slots, slurm, status
from common.experiments.manager import GRACE, Manager, say, signature
from common.experiments.runs import Run, State
from common.experiments.state_file import DEFAULT_LIST, Queue
from common.options import Parser

ASK_EVERY = 15  # tables of `status --watch`: as many as 30 seconds have, which is how often Slurm may be asked

root = os.path.dirname(os.path.abspath(__file__))


def main():
    protect_output()
    forget_torchrun()
    options = parse_command_line()
    options.root = root
    with exit_on_error():
        if not options.list:
            raise ValueError("--list='' names no file; leave it out, or name one")
        typed = options.list
        if not os.path.exists(typed):  # as for config files: in the working directory, else in the project
            options.list = os.path.join(root, typed)
        queue = Queue(typed, options.list if os.path.exists(options.list) else typed)
        sys.exit(options.function(options, queue))


def parse_command_line():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.otherwise = 'options go behind a command'
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name, function, help):
        command = commands.add_parser(name, help=help)
        command.add_argument('--list', type=os.path.expanduser, default=DEFAULT_LIST, help='experiments, one per line')
        command.set_defaults(function=function)
        return command

    command = add('run', run_queue, 'work through the list')
    command.loose = '--list'
    command.otherwise = 'what train.py takes stands in the list; run_manager.py run --help lists what is left'
    command.add_argument('--gpus', default='', help='their numbers, as in 0,1; one experiment on each')
    command.add_argument('--nproc_per_node', type=int, default=1, help='GPUs for one experiment, through torchrun')
    command.add_argument('--jobs', type=int, default=1, help='how many experiments run at once, on each GPU of --gpus '
                         'if that is given; they divide the CPU cores')
    command.add_argument('--grace', type=float, default=GRACE, help='seconds that a run which was told to stop has for '
                         f'its iteration and its checkpoint, then it is killed; default: {GRACE}')
    command.add_argument('--launcher', choices=['local', 'slurm'], default='local')
    command.add_argument('--sbatch', default='', metavar='OPTIONS',
                         help="more options for sbatch, as in '--gres=gpu:1 --time=12:00:00'")
    command.add_argument('--dry_run', action='store_true', help='only check the list and print the commands')
    command = add('status', show_status, 'what each experiment is doing')
    how = command.add_mutually_exclusive_group()
    how.add_argument('--json', action='store_true', help='for programs')
    how.add_argument('--watch', action='store_true', help=f'again every {status.EVERY:g} seconds, until Ctrl-C')
    command = add('logs', show_log, 'what an experiment printed')
    command.add_argument('name')
    command.add_argument('-f', '--follow', action='store_true', help='and go on with what it prints next')
    command.add_argument('-n', type=int, metavar='LINES', help='only so many at its end')
    command = add('stop', changes.stop, 'stop an experiment, with a checkpoint, or take it out of the queue')
    command.add_argument('name')
    command.add_argument('--now', action='store_true', help='kill it, without a checkpoint')
    command = add('retry', changes.retry, 'put an experiment back into the queue; it goes on from its last checkpoint')
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument('name', nargs='?')
    which.add_argument('--failed', action='store_true', help='all that failed')
    command = add('add', changes.add, 'put a line at the end of the list: [NAME:] and what follows python train.py')
    command.otherwise = '-- goes in front of a line that begins with an option, as in add -- --seed=2'
    command.add_argument('words', nargs=argparse.REMAINDER, metavar='LINE', help='as it stands in the list, without '
                         'quotes around the whole; --list goes in front of it')
    command = add('remove', changes.remove, 'take an experiment out of the list; its folder stays')
    command.add_argument('name')
    command = add('repair', changes.repair, "find the runs again by their folders, if the queue's file is damaged")
    command = add('report', make_report, 'compare runs: a table, report.html, report.png')
    command.add_argument('out_dir', nargs='*', type=os.path.expanduser, help='folders of runs; default: of the list')
    command.add_argument('--target', type=float, help='a validation loss: time and tokens to it')
    command.add_argument('--out', type=os.path.expanduser, default='report', help='writes OUT.html and OUT.png')
    command.add_argument('--csv', type=os.path.expanduser, metavar='FILE', help='the table for programs; - is stdout')
    command.add_argument('--json', type=os.path.expanduser, metavar='FILE', help='as JSON')
    command.add_argument('--serve', action='store_true', help='show the page on this machine, updated as runs go on')
    command.add_argument('--port', type=int, default=8080)
    command = add('curve', show_curve, 'is the loss of a run what it should be by now, and if not, why')
    command.add_argument('out_dir', type=os.path.expanduser, help='the folder of a run, at any time while it trains')
    command.add_argument('--against', type=os.path.expanduser, default='', metavar='OUT_DIR',
                         help='another run as the reference')
    command.add_argument('--json', action='store_true', help='for programs')
    options = parser.parse_args()
    if sum(word == '--list' or word.startswith('--list=') for word in sys.argv) > 1:
        parser.error('--list is there twice; a command takes one, but report also takes folders: report out out-2')
    return options


def run_queue(options, queue):
    """Work through the list until everything is done, or submit it to Slurm. Returns the exit code."""
    if sys.platform == 'win32':
        raise ValueError('a queue needs processes and signals as Linux and macOS have them')
    seen = signature(options.list)  # first: what is changed from here on, the manager reads again
    experiments = experiment_list.read(options.list, root)
    try:
        gpus = slots.find(options.gpus, options.nproc_per_node)
    except ValueError as error:
        if not options.dry_run:  # which may be on another machine
            raise
        print(f'run_manager.py: {error}', file=sys.stderr)
    check_run(options)
    runs = {one.name: Run() for one in experiments} | queue.read()
    left = [one for one in experiments if runs[one.name].state != State.DONE]
    for one in experiments:
        if runs[one.name].state == State.DONE and runs[one.name].words not in (None, one.words):
            print(f'{one.name}: its line has changed since it was done; to train it again from scratch: '
                  f'python run_manager.py retry {one.name}{queue.hint}')
    new = [(one, queue.clash(one)) for one in left if not runs[one.name].started]
    experiment_list.refuse([(one.line, clash) for one, clash in new if clash], options.list)
    experiment_list.refuse(experiment_list.check(left, root, options.nproc_per_node), options.list)
    if options.dry_run:
        for one in left:
            words = experiment_list.command(one, root, options.nproc_per_node, runs[one.name].anew)
            print(shlex.join(words))
            if options.launcher == 'slurm':
                after = [f'JOB_OF_{name}' for name in one.after if runs[name].state != State.DONE]
                sbatch, script = slurm.job(one, words, after, options.sbatch)
                print(f'{shlex.join(sbatch)} <<"END"\n{script}END\n')
        return 0
    console.width('')  # says that wcwidth is missing before anything is started
    queue.lock_for_manager()
    if options.launcher == 'slurm':
        return submit_all(left, queue, options)
    manager = Manager(queue, gpus, options.nproc_per_node, root, options.jobs, options.grace)
    return manager.work(experiments, options.list, seen)


def check_run(options):
    """ValueError for options of `run` that cannot be, or that do not go together."""
    if options.jobs < 1:
        raise ValueError(f'--jobs={options.jobs} is below 1')
    if not 0 <= options.grace < 1e9:
        raise ValueError(f'--grace={options.grace:g} is not a number of seconds; try --grace={GRACE}')
    if options.launcher == 'slurm' and (options.jobs > 1 or options.gpus):
        given = '--gpus' if options.gpus else '--jobs'
        raise ValueError(f'{given} does not go with --launcher=slurm, where Slurm says what runs where and when; leave '
                         'it out, or give --sbatch')
    if options.sbatch and options.launcher != 'slurm':
        raise ValueError('--sbatch has no effect without --launcher=slurm')


def submit_all(experiments, queue, options):
    """Submit a Slurm job for each queued experiment whose prerequisites are done or submitted."""
    answers = slurm.ask(queue.read())
    with queue.changing() as runs:
        slurm.update(runs, answers)
    # prerequisites first
    for one in sorted(experiments, key=lambda one: len(experiment_list.ancestors(one, experiments))):
        job = None
        try:
            with queue.changing() as runs:  # written after each job, so that a later error cannot submit one twice
                run = runs.setdefault(one.name, Run(out_dir=one.out_dir))
                before = [runs[name] for name in one.after if runs[name].state != State.DONE]
                if run.state != State.QUEUED or any(other.state != State.SUBMITTED for other in before):
                    continue
                run.start(State.SUBMITTED, one)
                words = experiment_list.command(one, root, options.nproc_per_node, run.anew)
                job = slurm.submit(one, words, [other.job for other in before], options.sbatch)
                run.job, run.slurm = job, 'PENDING'
        except BaseException:  # Ctrl-C, too
            if job:  # which is not recorded, and would be submitted again
                slurm.call('scancel', job)
            raise
        say(f'{one.name}: job {job}')


def show_status(options, queue):
    """Print a table of the experiments, or JSON."""
    if options.watch:
        tables = itertools.count()
        return status.watch(lambda: look(options, queue, ask=next(tables) % ASK_EVERY == 0)[-1])
    names, runs, lines = look(options, queue)
    print(json.dumps(status.as_json(names, runs), indent=1) if options.json else '\n'.join(lines))


def look(options, queue, ask=True):
    """(the names of the experiments to show, {name: Run}, the lines of the table); `ask`: also Slurm."""
    runs = queue.read()
    notes = []
    try:
        if ask and (answers := slurm.ask(runs)):  # before the queue is locked, as that may take long
            with queue.changing() as runs:
                slurm.update(runs, answers)
    except ValueError as error:  # Slurm does not answer: this is what it said last
        notes.append(str(error))
    try:
        experiments = experiment_list.read(options.list)
    except ValueError as error:
        if not runs:
            raise
        notes.append(str(error))
        experiments = []
    for one in experiments:
        runs.setdefault(one.name, Run(out_dir=one.out_dir)).after = one.after
    listed = [one.name for one in experiments]
    names = listed + [name for name, run in runs.items() if name not in listed and run.state != State.QUEUED]
    lines = list(status.status_lines(names, runs))
    if any(runs[name].state in (State.QUEUED, State.RUNNING) for name in names) and not queue.has_manager():
        lines.append(f'no manager is running for this list: python run_manager.py run{queue.hint}{queue.others()}')
    if notes and not options.watch:
        print('\n'.join(f'run_manager.py: {note}' for note in notes), file=sys.stderr)
    return names, runs, lines + notes * options.watch


def show_log(options, queue):
    path = os.path.join(queue.run(queue.read(), options.name).out_dir, 'log.txt')
    if not os.path.exists(path):
        raise ValueError(f'{options.name} has printed nothing yet')
    if options.n is not None and options.n < 0:
        raise ValueError(f'-n {options.n} is below 0')

    def goes_on():
        state = queue.run(queue.read(), options.name).state if options.follow else State.DONE
        return state not in (State.DONE, State.FAILED, State.STOPPED)

    status.show_log(path, options.n, goes_on)


def make_report(options, queue):
    def folders():
        """Those of the command line, or else of the runs in the list as it is now."""
        if options.out_dir:
            return options.out_dir
        runs = queue.read()
        return [runs[one.name].out_dir for one in experiment_list.read(options.list)
                if one.name in runs and runs[one.name].started]

    report.main(folders, options, queue.hint)


def show_curve(options, queue):
    """Say whether the curve of a run is normal, or print JSON."""
    case = curve.read(options.out_dir, options.against)
    print(curve.as_json(case) if options.json else '\n'.join(curve.lines(case)))


if __name__ == '__main__':
    main()
