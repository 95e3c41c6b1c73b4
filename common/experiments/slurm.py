"""Experiments as Slurm jobs, through sbatch, squeue, sacct and scancel. Slurm does the queueing."""
import contextlib
import os
import shlex
import subprocess
import sys

from common.experiments.runs import State

ENDED = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'OUT_OF_MEMORY', 'NODE_FAIL', 'BOOT_FAIL', 'DEADLINE',
         'PREEMPTED'}
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
    """The output of a Slurm command. ValueError with its error message if it fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, **options).stdout
    except FileNotFoundError:
        raise ValueError(f'there is no {words[0]} here; --launcher=slurm is for a cluster that has Slurm') from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f'{words[0]}: {error.stderr.strip() or f"exit code {error.returncode}"}') from None


def submit(name, words, out_dir, after, more):
    """Submit a command; returns the job's number. after: jobs that must succeed first; more: options for sbatch."""
    words = [sys.executable, *words[1:]]
    last, begun = (shlex.quote(os.path.join(out_dir, file)) for file in ('last.pt', '.begun'))
    script = SCRIPT.format(last=last, begun=begun, first=shlex.join(words),
                           again=shlex.join([*words, '--init_from=auto']))
    dependency = [f'--dependency=afterok:{":".join(after)}', '--kill-on-invalid-dep=yes'] if after else []
    job = call('sbatch', '--parsable', f'--job-name={name}', f'--output={os.path.join(out_dir, "log.txt")}',
               '--open-mode=append', '--requeue', '--signal=B:USR1@120', *dependency, *shlex.split(more), input=script)
    return job.strip().partition(';')[0]  # NUMBER, or NUMBER;CLUSTER


def update(runs):
    """Update all submitted runs with what Slurm says of their jobs."""
    jobs = {run.job: run for run in runs.values() if run.state == State.SUBMITTED}
    if not jobs:
        return
    states = {}
    # a cluster may keep no accounts; a job that has left the queue is then judged by its files
    with contextlib.suppress(ValueError):
        for line in call('sacct', '-n', '-X', '-P', '-j', ','.join(jobs), '-o', 'JobID,State,ExitCode').splitlines():
            job, state, code = line.split('|')
            states[job] = state.split()[0], code  # without the user, as in CANCELLED by 1000
    # no -j, because squeue fails if one of the jobs has left the queue
    waiting = dict(line.split('|') for line in call('squeue', '-h', '--me', '-o', '%i|%T').splitlines())
    for job, run in jobs.items():
        state, code = (waiting[job], '') if job in waiting else states.get(job, ('COMPLETED', ''))
        run.slurm = state
        if job in waiting or state not in ENDED:
            continue
        if run.ended('done'):
            run.state, run.error = State.DONE, None
        elif code == '75:0' or run.ended('stopped'):
            run.state = State.QUEUED  # the next run of the queue submits it again, and it resumes
        else:
            run.state, run.error = State.FAILED, f'{state} {code}: {run.last_line()}'


def stop(run):
    """Cancel a job. If it is running it saves first."""
    call('scancel', *(['--batch', '--signal=TERM'] if run.slurm == 'RUNNING' else []), run.job)
