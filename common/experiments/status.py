"""What a user sees of a queue: a table or JSON, once or again and again, and what a run printed. No torch, no numpy."""
import codecs
import collections
import contextlib
import select
import shutil
import sys
import time

from common.console import cut, table, visible
from common.experiments.runs import State

EVERY = 2.0  # seconds between two tables of `status --watch`
LOOK = 0.5   # seconds between two looks at a log


def status_lines(names, runs):
    """A table of the runs with these names, line by line. What only running ones have is left out if none is."""
    rows = [('name', 'state', 'pid', 'GPU', 'started', ''), *(row(name, runs) for name in names)]
    return table(zip(*(cells for cells in zip(*rows) if any(cells[1:]) or cells[0] in ('name', 'state', ''))))


def row(name, runs):
    """The cells of a run in the table."""
    run = runs[name]
    state, text = run.describe(runs)
    process = ['', '', '']
    if run.state == State.RUNNING:
        process = [str(run.pid or ''), run.slot or '', clock(run.started)]
    return visible(name), f'{state:11}', *process, visible(' '.join(text.split()))[:500]


def clock(seconds):
    """When that was, in local time; '' if no calendar has it."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return time.strftime('%m-%d %H:%M', time.localtime(seconds))
    return ''


def as_json(names, runs):
    """The runs with these names as a list of dicts, for programs."""
    return [{**vars(runs[name]), **runs[name].progress(), 'name': name, 'state': runs[name].describe(runs)[0]}
            for name in names]


def watch(lines):
    """Print lines() every two seconds until Ctrl-C: in place on a terminal, else one below the other."""
    on_terminal = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        print('\x1b[2J' if on_terminal else '', end='')  # clears the screen
        while not nobody_reads():
            try:
                shown = lines()
            except (ValueError, OSError) as error:  # the list is being edited, perhaps
                shown = str(error).splitlines()
            if on_terminal:
                columns, rows = shutil.get_terminal_size()
                shown = [cut(line, columns - 1) for line in shown[:rows - 1]]
                # to the top; clear what each line, and the page, had there before
                print('\x1b[H' + ''.join(f'{line}\x1b[K\n' for line in shown) + '\x1b[J', end='', flush=True)
            else:
                print('\n'.join(shown), end='\n\n', flush=True)
            time.sleep(EVERY)
    print('\n' * on_terminal, end='')  # behind the ^C


def show_log(path, last, follow):
    """
    Print a run's log, or its `last` lines, as far as a terminal may show it. While follow() is true, go on with what is
    written next.
    """
    decoder = codecs.getincrementaldecoder('utf-8')('backslashreplace')  # waits for the rest of a character
    with contextlib.suppress(KeyboardInterrupt), open(path, 'rb') as f:
        content = b''.join(collections.deque(f, last)) if last is not None else b''
        while True:
            goes_on = follow()  # first, or its last lines may come in between
            while content := content or f.read(2**20):
                # a progress bar goes back to the start of its line again and again
                print(visible(decoder.decode(content).replace('\r\n', '\n').replace('\r', '\n')), end='', flush=True)
                content = b''
            if not goes_on or nobody_reads():
                return
            time.sleep(LOOK)


def nobody_reads():
    """Whether stdout is a pipe whose reader has ended, as in `| head`, or a terminal that is gone."""
    if not hasattr(select, 'poll'):  # on Windows
        return False
    poll = select.poll()
    poll.register(1, 0)  # 0: nothing but errors
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
