"""
A Python that has already imported torch, which takes most of a toy run's time. For each line on stdin, the JSON of a
list of [arguments, folder, environment, stdin, seconds], it forks as many processes at once, each of which runs its
script as `python` would, for at most so many seconds; when all have ended it prints the JSON of a list of [exit code,
stdout, stderr]. All forks hash strings alike, which new processes do not, and end without tidying up their memory.
"""
import atexit
import json
import os
import runpy
import signal
import sys
import tempfile
import threading

import torch._dynamo  # noqa: here, or the first optimizer does it in each fork
import torch._inductor.compile_fx  # noqa: likewise, for what is compiled
import torch.distributed.fsdp  # noqa


def become(args, folder, environment, seconds, files):
    """Run the script in this process, to its end."""
    signal.alarm(seconds)
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = args, os.path.dirname(args[0])
    sys.path[1:1] = filter(None, environment.get('PYTHONPATH', '').split(os.pathsep))
    code = 0
    try:
        runpy.run_path(args[0], run_name='__main__')
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    # what Python does at its end, but for the objects that are left: in a fork that takes more than a second
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


for line in sys.stdin:
    children = []
    for args, folder, environment, given, seconds in json.loads(line):
        files = [tempfile.TemporaryFile('w+', encoding='utf-8') for _ in range(3)]
        files[0].write(given)
        files[0].seek(0)
        child = os.fork()
        if child == 0:
            become(args, folder, environment, seconds, files)
        children.append((child, files))
    answers = []
    for child, files in children:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in files:
            file.seek(0)
        answers.append([code, *(file.read() for file in files[1:])])
    print(json.dumps(answers), flush=True)
