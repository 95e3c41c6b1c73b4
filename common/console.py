"""Output for the user: lines that never end a run, exits with an error message, readable figures. It needs no torch."""
import contextlib
import io
import json
import math
import os
import re
import sys
import time

SEPARATOR = '\n---------------\n'  # between sample texts
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f]')  # C0 and C1 without \t and \n
OURS = ('common', 'corpus', 'model')  # modules that are no package to install
OTHERS_FAIL = 5.0  # seconds in which torchrun ends all processes once one has failed


class SafeOutput(io.RawIOBase):
    """
    A raw binary stream whose writes never fail. What cannot be written is dropped: the terminal may be gone, the disk
    full, the reader of a pipe too. It has no lock, so a signal handler may print while a line is being printed.
    """

    def __init__(self, raw):
        self.raw, self.failed = raw, False

    def write(self, data):
        left = memoryview(data)
        try:
            while left:
                written = self.raw.write(left)
                if written is None:  # a pipe in non-blocking mode is full
                    time.sleep(0.01)
                else:
                    left = left[written:]
        except OSError as error:
            if not self.failed and self.raw.fileno() == 1 and not isinstance(error, BrokenPipeError):
                print(f'{script_name()}: output is lost from here on ({error.strerror})', file=sys.stderr)
            self.failed = True
        return len(data)

    def writable(self):
        return True

    def fileno(self):
        return self.raw.fileno()

    def isatty(self):
        return self.raw.isatty()


def protect_output():
    """
    From here on a print cannot fail, whatever becomes of stdout and stderr. Each line is written at once, even to a
    file. A character that the terminal does not know becomes an escape. Streams that are closed become /dev/null, or
    the next file that is opened would take their place. A Ctrl-C that nothing handles, and a package that is missing,
    end the script without a traceback.
    """
    sys.excepthook = explain
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
    sys.stdin = sys.stdin or open(0, encoding='utf-8')
    for name, number in (('stdout', 1), ('stderr', 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f'__{name}__'):  # somebody's own, or protected already
            continue
        raw = io.FileIO(number, 'w', closefd=False) if stream is None else stream.buffer
        setattr(sys, name, io.TextIOWrapper(SafeOutput(getattr(raw, 'raw', raw)), getattr(stream, 'encoding', 'utf-8'),
                                            'backslashreplace', line_buffering=True))


def explain(kind, error, traceback):
    """As sys.excepthook, but one line for Ctrl-C, and for a package that is missing."""
    if issubclass(kind, KeyboardInterrupt):
        print('stopped', file=sys.stderr)
    elif issubclass(kind, ModuleNotFoundError) and (error.name or 'common').partition('.')[0] not in OURS:
        print(f'{script_name()}: the package {error.name} is not installed: pip install -r requirements.txt, in the '
              f'environment of this Python ({sys.executable})', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def forget_torchrun():
    """Remove what torchrun has set around this process, which is no rank of a run, nor are those that it starts."""
    for name in list(os.environ):
        if re.fullmatch(r'(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_\w+|TORCHELASTIC_\w+', name):
            del os.environ[name]


def script_name():
    """The script that runs, as messages name it: train.py, shakespeare/prepare.py."""
    folder, name = os.path.split(os.path.abspath(sys.argv[0]))
    return f'{os.path.basename(folder)}/{name}' if name == 'prepare.py' else name


def say(line):
    """Print a line on stderr, once for all ranks of a run: stdout may be for the text of a model."""
    if os.environ.get('RANK') in (None, '', '0'):
        print(line, file=sys.stderr)


def stop(message, code=2):
    """
    End the script with one line on stderr. Exit code 2 means wrong usage or settings. A mistake that all processes of a
    run see is told once per machine, by its first; one that a single process sees, by that one.
    """
    rank = os.environ.get('RANK', '0')
    if os.environ.get('WORLD_SIZE', '1') != '1' and os.environ.get('LOCAL_RANK', '0') != '0':
        time.sleep(OTHERS_FAIL)
    line = f'{script_name()}{f" (rank {rank})" * (rank != "0")}: {message}'
    print(line, file=sys.stderr)
    with contextlib.suppress(KeyError, OSError), open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w') as f:
        json.dump({'message': line, 'extraInfo': {'timestamp': f'{time.time():.0f}'}}, f)  # torchrun ends with it
    sys.exit(code)


@contextlib.contextmanager
def exit_on_error():
    """Treat ValueError and OSError in the block as user errors: print one line, exit with code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        stop(error)


def perplexity(loss):
    """exp(loss); infinity where a float cannot hold it, NaN for NaN."""
    return math.inf if loss > 700 else math.exp(loss)


def bits_per_byte(loss, bytes_per_token):
    """
    A loss in nats a token as bits a byte of UTF-8, which can be compared between vocabularies that score the same text.
    None where the bytes are not known.
    """
    return loss / math.log(2) / bytes_per_token if bytes_per_token else None


def finite(values):
    """A dict with None for what is not finite, which JSON cannot express."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()}


def visible(text):
    """
    A text as a terminal may show it: of its control characters only line ends and tabs act, others become escapes such
    as \\x1b. Otherwise a text from elsewhere could clear the screen, set the title or write the clipboard.
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text.replace('\r\n', '\n'))


def width(text):
    """The columns of a terminal that a text takes: two for each character of Hangul, and for an emoji."""
    from wcwidth import wcswidth
    return max(wcswidth(text), 0)


def pad(text, columns):
    """`text` with spaces up to so many columns of a terminal."""
    return text + ' ' * (columns - width(text))


def table(rows):
    """The lines of a table, whose rows are lists of texts: each column is as wide as its widest, all but the last."""
    rows = list(rows)
    widths = [max(map(width, column)) for column in zip(*rows)]
    for *cells, last in rows:
        yield '  '.join([*map(pad, cells, widths), last]).rstrip()


def cut(text, columns):
    """What so many columns of a terminal hold of a text."""
    text = text[:columns]
    while width(text) > columns:
        text = text[:-1]
    return text


def duration(seconds):
    """12s, 3m04s, 2h05m or 4d03h: the two largest units."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds}s'
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    if seconds < 86400:
        return f'{seconds // 3600}h{seconds // 60 % 60:02d}m'
    return f'{seconds // 86400}d{seconds // 3600 % 24:02d}h'
