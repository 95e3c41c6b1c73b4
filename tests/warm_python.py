"""
A Python that has imported torch already, which is three quarters of the time of a toy run. For each line on stdin, the
JSON of [arguments, folder, environment, seconds], it forks a process that runs the script as `python` would, with
its output in the files stdout and stderr of its own working directory, and prints the exit code.
"""
import json
import os
import runpy
import signal
import sys

import torch._dynamo  # noqa: what torch.optim imports when it is first used
import torch.distributed.fsdp  # noqa

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        args, folder, environment, seconds = json.loads(line)
        signal.alarm(seconds)
        for number, name in enumerate((os.devnull, 'stdout', 'stderr')):
            os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, sys.path[0] = args, os.path.dirname(args[0])
        runpy.run_path(args[0], run_name='__main__')
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
