"""
A Python that has already imported torch, which takes three quarters of a toy run's time. For each line on stdin, the
JSON of [arguments, folder, seconds], it forks a process that runs the script as `python` would, for at most so many
seconds, and prints the JSON of [exit code, stdout, stderr]. All forks hash strings alike, which new processes do not.
"""
import json
import os
import runpy
import signal
import sys
import tempfile

import torch._dynamo  # noqa: here, or the first optimizer does it in each fork
import torch.distributed.fsdp  # noqa: likewise


def run(args, folder, seconds, files):
    """Become the script."""
    signal.alarm(seconds)
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    os.chdir(folder)
    sys.argv, sys.path[0] = args, os.path.dirname(args[0])
    runpy.run_path(args[0], run_name='__main__')


for line in sys.stdin:
    files = [open(os.devnull), *(tempfile.TemporaryFile('w+', encoding='utf-8') for _ in range(2))]
    child = os.fork()
    if child == 0:
        run(*json.loads(line), files)
        break  # and end as Python ends
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in files:
        file.seek(0)
    print(json.dumps([code, *(file.read() for file in files[1:])]), flush=True)
