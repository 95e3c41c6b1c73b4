"""Experiments as Slurm jobs, through sbatch, squeue, sacct and scancel. Slurm does the queueing."""
import contextlib
import os
import shlex
import subprocess
import sys
import time

from common.experiments.runs import State

ENDED = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'OUT_OF_MEMORY', 'NODE_FAIL', 'BOOT_FAIL', 'DEADLINE',
         'PREEMPTED'}
PATIENCE = 600  # seconds that a job may be in neither the queue nor the accounts, which a database writes later
# Two minutes before its time limit a job gets SIGUSR1: it saves and requeues itself. When it is started again, it
# resumes if there is a state newer than .begun. A signal ends `wait` too, hence the loop.
SCRIPT = '''#!/bin/bash
trap 'kill -TERM $pid; again=yes' USR1
trap 'kill -TERM $pid' TERM
if [ {last} -nt {begun} ]; then {again} & else {first} & fi
pid=$!
wait $pid; code=$?
while kill -0 $pid 2> /dev/null; do wait $pid; code=$?; done
if [ "$again" ]; then scontrol requeue $SLURM_JOB_ID; fi
exit $code
'''


def call(*words, **options):
    """The output of a Slurm command. ValueError with its error message if it fails, or does not answer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, **{'timeout': 60, **options}).stdout
    except FileNotFoundError:
        raise ValueError(f'there is no {words[0]} here; --launcher=slurm is for a cluster that has Slurm') from None
    except subprocess.TimeoutExpired as error:
        raise ValueError(f'{words[0]} has not answered for {error.timeout} seconds') from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f'{words[0]}: {error.stderr.strip() or f"exit code {error.returncode}"}') from None


def job(experiment, words, after, more):
    """
    (the words of sbatch, the script that it reads) for an experiment's command. after: jobs that must succeed first;
    more: options for sbatch, as in a shell. ValueError if a shell could not read them.
    """
    words = [sys.executable, *words[1:]]
    last, begun = (shlex.quote(os.path.join(experiment.out_dir, file)) for file in ('last.pt', '.begun'))
    script = SCRIPT.format(last=last, begun=begun, first=shlex.join(words),
                           again=shlex.join([*words, '--init_from=auto']))
    dependency = [f'--dependency=afterok:{":".join(after)}', '--kill-on-invalid-dep=yes'] if after else []
    try:
        more = shlex.split(more)
    except ValueError as error:
        raise ValueError(f'--sbatch={more!r}: {error}') from None
    return ['sbatch', '--parsable', f'--job-name={experiment.name}',
            f'--output={os.path.join(experiment.out_dir, "log.txt")}', '--open-mode=append', '--requeue',
            '--signal=B:USR1@120', *dependency, *more], script


def submit(experiment, words, after, more):
    """Submit a job(); returns its number."""
    sbatch, script = job(experiment, words, after, more)
    return call(*sbatch, input=script, timeout=None).strip().partition(';')[0]  # NUMBER, or NUMBER;CLUSTER


def ask(runs):
    """{job: (state, exit code)} of the submitted runs. No code: it waits or runs; no state: not known."""
    jobs = [run.job for run in runs.values() if run.state == State.SUBMITTED]
    if not jobs:
        return {}
    states = {}
    with contextlib.suppress(ValueError):  # a cluster may keep no accounts
        for line in call('sacct', '-n', '-X', '-P', '-j', ','.join(jobs), '-o', 'JobID,State,ExitCode').splitlines():
            number, state, code = line.split('|')
            states[number] = state.partition(' ')[0], code  # without the user, as in CANCELLED by 1000
    # no -j, because squeue fails if one of the jobs has left the queue
    lines = call('squeue', '-h', '--me', '-o', '%i|%T').splitlines()
    states |= {number: (state, None) for number, _, state in (line.partition('|') for line in lines)}
    return {number: states.get(number, (None, '')) for number in jobs}


def update(runs, answers):
    """Update the submitted runs that ask() has `answers` about, also by what they wrote."""
    for run in runs.values():
        if run.state != State.SUBMITTED or run.job not in answers:
            continue
        state, code = answers[run.job]
        run.slurm = state or run.slurm
        if code is None or state not in ENDED | {None}:
            run.missing = None
        elif run.ended('done'):
            run.state, run.error = State.DONE, None
        elif code == '75:0' or run.ended('stopped'):
            run.state = State.QUEUED  # the next run of the queue submits it again, and it resumes
        elif state:
            run.state, run.error = State.FAILED, f'{state} {code}: {run.last_line()}'
        else:  # not a failure until Slurm has had time to say so
            run.missing = run.missing or time.time()
            if time.time() > run.missing + PATIENCE:
                run.state, run.error = State.FAILED, f'Slurm does not know job {run.job} any more: {run.last_line()}'


def stop(run, now=False):
    """Cancel a job. If it is running it saves first, unless it has to end now."""
    call('scancel', *(['--batch', '--signal=TERM'] if run.slurm == 'RUNNING' and not now else []), run.job)
