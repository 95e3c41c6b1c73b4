"""
Experiments as jobs of a Slurm cluster, which does the queueing: sbatch, squeue, sacct and scancel are called, no more.
"""
import os
import shlex
import subprocess
import sys

from common import runstate

ENDED = {'FAILED', 'CANCELLED', 'TIMEOUT', 'OUT_OF_MEMORY', 'NODE_FAIL', 'BOOT_FAIL', 'DEADLINE', 'PREEMPTED'}
# Two minutes before its time limit a job gets SIGUSR1. It saves and puts itself back into the queue, and resumes when
# it is started again: from a state newer than .begun. A wait ends when a signal comes, too, hence the loop.
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
    """What a command of Slurm prints. ValueError with what it complains about."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, **options).stdout
    except FileNotFoundError:
        raise ValueError(f'there is no {words[0]} here; --launcher=slurm is for a cluster that has Slurm') from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f'{words[0]}: {error.stderr.strip() or f"exit code {error.returncode}"}') from None


def submit(name, words, out_dir, after, more):
    """Submit a command; returns its job's number. after: jobs that must end well before it; more: words for sbatch."""
    words = [sys.executable, *words[1:]]
    last, begun = (shlex.quote(os.path.join(out_dir, file)) for file in ('last.pt', '.begun'))
    script = SCRIPT.format(last=last, begun=begun, first=shlex.join(words),
                           again=shlex.join([*words, '--init_from=auto']))
    dependency = [f'--dependency=afterok:{":".join(after)}', '--kill-on-invalid-dep=yes'] if after else []
    log = os.path.join(out_dir, 'log.txt')
    said = call('sbatch', '--parsable', f'--job-name={name}', f'--output={log}', '--open-mode=append', '--requeue',
                '--signal=B:USR1@120', *dependency, *shlex.split(more), input=script)
    return said.strip().partition(';')[0]  # NUMBER, or NUMBER;CLUSTER


def update(runs):
    """Ask Slurm about all runs that are submitted, and note how they are."""
    jobs = {run['job']: run for run in runs.values() if run['state'] == 'submitted'}
    if not jobs:
        return
    states = {}
    try:
        for line in call('sacct', '-n', '-X', '-P', '-j', ','.join(jobs), '-o', 'JobID,State,ExitCode').splitlines():
            job, state, code = line.split('|')
            states[job] = state.split()[0], code  # CANCELLED by 1000
    except ValueError:
        pass  # a cluster that keeps no accounts: what has left the queue is judged by its files
    # of jobs that have left the queue, squeue -j would know nothing, and fail
    waiting = dict(line.split('|') for line in call('squeue', '-h', '--me', '-o', '%i|%T').splitlines())
    for job, run in jobs.items():
        state, code = (waiting[job], '') if job in waiting else states.get(job, ('COMPLETED', ''))
        run['slurm'] = state
        if job in waiting or state not in ENDED | {'COMPLETED'}:
            continue
        if runstate.ended(run, 'done'):
            run.update(state='done', error=None)
        elif code == '75:0' or runstate.ended(run, 'stopped'):
            run.update(state='queued')  # the next run submits it again, and it resumes
        else:
            run.update(state='failed', error=f'{state} {code}: {runstate.last_line(run)}')


def stop(run):
    """Cancel a job; if it runs it saves first."""
    call('scancel', *(['--batch', '--signal=TERM'] if run.get('slurm') == 'RUNNING' else []), run['job'])
