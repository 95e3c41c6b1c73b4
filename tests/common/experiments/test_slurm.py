"""What Slurm says of a job, and what the queue makes of it."""
import subprocess
import time

import pytest

from common.experiments import slurm
from common.experiments.experiment_list import Experiment
from common.experiments.runs import Run, State


@pytest.fixture
def answers(monkeypatch):
    """{command: what it prints, or an error}."""
    answers = {'squeue': '', 'sacct': ''}

    def call(name, *words, **options):
        if isinstance(answers[name], Exception):
            raise answers[name]
        return answers[name]
    monkeypatch.setattr(slurm, 'call', call)
    return answers


@pytest.fixture
def run(tmp_path):
    return Run(state=State.SUBMITTED, started=5, out_dir=str(tmp_path), job='7', slurm='RUNNING')


def look(run):
    slurm.update({'a': run}, slurm.ask({'a': run}))


@pytest.mark.parametrize('accounts', ['', ValueError('no accounts here')])
def test_a_job_that_slurm_does_not_know_yet_is_not_judged_but_for_some_minutes(answers, run, accounts):
    answers['sacct'] = accounts
    look(run)
    assert (run.state, run.slurm) == (State.SUBMITTED, 'RUNNING') and 'has left the queue' in run.describe({})[1]
    answers['sacct'] = '7|FAILED|1:0\n'
    look(run)
    assert run.state == State.FAILED and run.error == 'FAILED 1:0: it printed nothing'


def test_a_job_that_slurm_never_knows_fails_in_the_end(answers, run):
    look(run)
    run.missing -= slurm.PATIENCE + 1
    look(run)
    assert run.state == State.FAILED and 'does not know job 7 any more' in run.error


@pytest.mark.parametrize('line, state', [('"done": true', State.DONE), ('"stopped": true', State.QUEUED)])
def test_what_a_job_wrote_at_its_end_is_enough(answers, run, tmp_path, line, state):
    (tmp_path / 'metrics.jsonl').write_text(f'{{"iter": 5, {line}}}\n')
    look(run)
    assert run.state == state


def test_a_job_that_is_seen_again_was_never_missing(answers, run):
    run.missing = time.time() - 2 * slurm.PATIENCE
    answers['squeue'] = '7|PENDING\n'
    look(run)
    assert run.missing is None and run.slurm == 'PENDING'


def test_options_that_no_shell_can_read_are_refused():
    with pytest.raises(ValueError, match='--sbatch=.*No closing quotation'):
        slurm.job(Experiment('a', [], 'results/a', 1, []), ['python', 'train.py'], [], '--comment="x')


def test_a_run_that_was_submitted_after_slurm_was_asked_is_not_judged(answers, run):
    slurm.update({'a': run}, {'6': ('FAILED', '1:0')})
    assert run.state == State.SUBMITTED and run.missing is None


def test_a_command_that_hangs_is_said_and_ends_but_for_sbatch_which_may_have_queued_the_job(monkeypatch):
    def hang(words, timeout, **options):
        raise subprocess.TimeoutExpired(words, timeout) if timeout else FileNotFoundError
    monkeypatch.setattr('subprocess.run', hang)
    with pytest.raises(ValueError, match='squeue has not answered for 60 seconds'):
        slurm.call('squeue')
    with pytest.raises(ValueError, match='there is no sbatch'):
        slurm.submit(Experiment('a', [], 'results/a', 1, []), ['python', 'train.py'], [], '')
