"""
Scripts run as a user runs them, and their CompletedProcess. Where that can be they are forked from a process that has
imported torch (warm_python.py), which takes most of a toy run's time.
"""
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile

from hooked import HANG

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRAIN, HOOKED = os.path.join(ROOT, 'train.py'), os.path.join(ROOT, 'tests', 'hooked.py')
# code for HOOKED: bench.py's measure of the machine is one product instead of a second of them
QUICK = 'from common.benchmark import roofline\nroofline.shortest = roofline.seconds\n'
WITHOUT_TORCH = ('run_manager.py',)
# variables that a fork may be given, as nothing reads them before a script has begun
FORK_MAY_SET = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'HOME',
                'PYTHONPATH', 'TORCHELASTIC_USE_AGENT_STORE', 'WANDB_MODE', 'WANDB_SILENT', 'WANDB_API_KEY')


def python(*args, cwd, stdin='', **env):
    """Run `python args` in a folder; returns the CompletedProcess, with stdout and stderr as text."""
    return run_all([args], cwd, [env], stdin)[0]


def ok(done):
    """A CompletedProcess that must have succeeded."""
    assert done.returncode == 0, done.stderr
    return done


def hook(code, script, *args, cwd):
    """Run a script of the project with a piece of code ahead of it (tests/hooked.py); returns the CompletedProcess."""
    return python(HOOKED, code, os.path.join(ROOT, script), *args, cwd=cwd)


def ranks(count, *args, cwd):
    """Run `python args` as `torchrun --nproc_per_node=count` would; returns the CompletedProcess of each rank."""
    from torch.distributed import TCPStore
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)  # as torchrun's, on a port of its own
    shared = dict(WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR='127.0.0.1', MASTER_PORT=store.port,
                  TORCHELASTIC_USE_AGENT_STORE=True)
    envs = [{key: str(value) for key, value in dict(shared, RANK=rank, LOCAL_RANK=rank).items()}
            for rank in range(count)]
    return run_all([args] * count, cwd, envs)


def run_all(commands, cwd, envs, stdin=''):
    """Run commands at once, each with its own additions to the environment; returns their CompletedProcesses."""
    commands = [[str(arg) for arg in args] for args in commands]
    is_script = all(args[0].endswith('.py') and os.path.basename(args[0]) not in WITHOUT_TORCH for args in commands)
    can_fork = all(env.keys() <= set(FORK_MAY_SET) for env in envs) and environment() == ENVIRONMENT
    if is_script and can_fork and sys.platform == 'linux':
        server = warm_python()
        requests = [[args, str(cwd), {**ENVIRONMENT, **env}, stdin, HANG] for args, env in zip(commands, envs)]
        print(json.dumps(requests), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, 'tests/warm_python.py has died; what it said stands in stderr'
        done = [subprocess.CompletedProcess(args, *one) for args, one in zip(commands, json.loads(answer))]
    else:
        done = start_all(commands, cwd, envs, stdin)
    for one in done:
        if one.returncode == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(one.args, HANG, one.stdout, one.stderr)
    return done


def start_all(commands, cwd, envs, stdin):
    """run_all() in new processes."""
    files = [[tempfile.TemporaryFile('w+', encoding='utf-8') for _ in range(3)] for _ in commands]
    processes = []
    try:
        for args, env, (given, out, err) in zip(commands, envs, files):
            given.write(stdin)
            given.seek(0)
            processes.append(subprocess.Popen([sys.executable, *args], cwd=cwd, env={**environment(), **env},
                                              stdin=given, stdout=out, stderr=err))
        for process in processes:
            process.wait(timeout=HANG)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for file in sum(files, []):
        file.seek(0)
    return [subprocess.CompletedProcess(args, process.returncode, out.read(), err.read())
            for args, process, (_, out, err) in zip(commands, processes, files)]


def environment():
    """os.environ without what pytest and, once it has compiled something, torch.compile note there."""
    return {key: value for key, value in os.environ.items() if not key.startswith('PYTEST_')
            and ('TORCHINDUCTOR' not in key or key == 'TORCHINDUCTOR_CACHE_DIR')}


ENVIRONMENT = {}  # with which the tests begin, as conftest.py knows


@functools.cache
def warm_python():
    """The process of tests/warm_python.py; it ends when its stdin does, with this process."""
    return subprocess.Popen([sys.executable, os.path.join(ROOT, 'tests', 'warm_python.py')], text=True,
                            env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
