"""A conversation in the terminal. Each model that answers is a Speaker."""
import contextlib
import difflib
import math
import os
import sys

import torch

from common import files
from common.device import is_out_of_memory
from common.sampling import analysis

HELP = '''Type something; the model answers. Ctrl-C ends an answer, quit or Ctrl-D leaves.
  """               begins and ends a text of several lines
  /temp 0.8         temperature; 0 always takes the likeliest token
  /tokens 500       the most tokens in an answer
  /topk 200         choose among this many of the likeliest tokens; 0: all
  /topp 0.9         choose among the likeliest tokens that together have this probability; 1: all
  /seed 1           the seed of the next answer; it goes up by 1 with each answer
  /system TEXT      a text before the conversation; /system - removes it
  /load OUT_DIR     continue with another model
  /compare OUT_DIR  let another model answer too, from the same seed; /compare - ends that
  /top              the ten likeliest next tokens; /top TEXT: the ten after TEXT
  /undo             forget the last answer and what you said
  /retry            answer again, from the next seed
  /save FILE        write the conversation to a file
  /reset            start over
  /stats            speed, and how full the context is
  /help             this list
  /quit             leave'''


def number(name, text, kind, low, high, default):
    """`text` as a number from `low` to `high`, `default` if it is empty. ValueError if it is no such number."""
    try:
        value = kind(text) if text else default
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        limits = f'from {low} up' if high == math.inf else f'from {low} to {high}'
        raise ValueError(f'{name} is a number {limits}, not {text!r}')
    return value


def read_line(prompt):
    """A line from the user. EOFError at the end of the input, or if it cannot be read any more."""
    sys.stdout.flush()  # input() would do it, and its error be taken for one of the input
    try:
        return input(prompt) if prompt else input()  # which writes nothing then
    except OSError as error:  # the terminal is gone
        print(f'the input cannot be read: {error.strerror}', file=sys.stderr)
        raise EOFError from None


def describe_error(error):
    """What an exception says, for a person."""
    if isinstance(error, (ValueError, OSError)):  # meant for the user
        return str(error)
    kind = 'out of memory' if is_out_of_memory(error) else type(error).__name__
    return f'{kind}: {str(error).strip().partition(chr(10))[0]}'


class Chat:
    """load(name) returns a Speaker, or raises an exception. `options` are those of generate.next_token."""

    def __init__(self, load, name, max_new_tokens, stops, seed, system='', **options):
        self.load, self.options, self.stops = load, options, stops
        self.max_new_tokens, self.seed, self.system = max_new_tokens, seed, system
        self.speakers = [load(name)]  # two while models are compared
        self.speakers[0].begin(system)

    def talk(self):
        """
        Read and answer until the end of the input or `quit`. After an error in a command or an answer the conversation
        goes on. OSError if there is no output any more.
        """
        at_terminal = sys.stdin.isatty()
        if at_terminal:
            with contextlib.suppress(ImportError):  # on Windows
                import readline  # gives input() line editing and a history
                readline.parse_and_bind('tab: complete')
                names = [line.split()[0] for line in HELP.splitlines() if line.startswith('  /')]
                readline.set_completer_delims(' ')
                readline.set_completer(lambda text, i: ([n for n in names if n.startswith(text)] + [None])[i])
            kind = 'answers' if self.speakers[0].template else 'was not taught to answer: it continues what you type'
            print(f'{self.speakers[0].describe()}\nIt {kind}. /help lists what else you can do.')
        while True:
            try:
                line = read_line('\n> ' if at_terminal else '')
                if line.strip() in ('quit', 'exit', '/quit', '/exit'):
                    return
                if line.startswith('"""'):
                    text = line[3:]
                    while not text.endswith('"""'):
                        text += '\n' + read_line('. ' if at_terminal else '')
                    self.say(text[:-3].strip('\n'))
                elif line.startswith('/'):
                    word, _, value = line.strip().partition(' ')
                    self.command(word, value.strip())
                elif line:
                    self.say(line)
            except KeyboardInterrupt:
                print('\n(quit or Ctrl-D leaves)' if at_terminal else '', flush=True)
            except EOFError:
                print(end='\n' if at_terminal else '')
                return
            except Exception as error:  # if it is printing that failed, it fails again, and that ends the chat
                print(describe_error(error), flush=True)

    def say(self, text):
        """Let each speaker answer, from the same seed."""
        for speaker in self.speakers:
            speaker.encode(text)  # a ValueError before any of them answers
        seed, self.seed = self.seed, self.seed + 1
        for speaker in self.speakers:
            self.print_name(speaker)
            generator = torch.Generator(speaker.device).manual_seed(seed)
            try:
                for piece in speaker.answer(text, self.max_new_tokens, self.stops, generator=generator, **self.options):
                    print(piece, end='', flush=True)
            except KeyboardInterrupt:
                print(' [interrupted]', end='')
            except Exception as error:  # of this speaker; the other one still answers
                print(f' [ended: {describe_error(error)}]', end='')
            print(flush=True)

    def print_name(self, speaker):
        """A line that tells compared models apart."""
        if len(self.speakers) > 1:
            print(f'[{speaker.name}]')

    def command(self, word, value):
        """Run a line that begins with /, as `word` and `value`. ValueError if there is no such command."""
        known = ['/' + name.removeprefix('do_') for name in dir(self) if name.startswith('do_')]
        if word.lower() not in known:
            close = difflib.get_close_matches(word.lower(), known, n=1)
            hint = f'did you mean {close[0]}?' if close else '/help lists them; a text within """ can begin with a /'
            raise ValueError(f'{word} is not a command; {hint}')
        getattr(self, f'do_{word[1:].lower()}')(value)

    def setting(self, name, value, kind, low, high):
        """Set a sampling option, if there is a value, and print it."""
        self.options[name] = number(name, value, kind, low, high, self.options[name])
        print(f'{name}: {self.options[name]}')

    def do_temp(self, value):
        self.setting('temperature', value, float, 0, math.inf)

    def do_topk(self, value):
        self.setting('top_k', value, int, 0, math.inf)

    def do_topp(self, value):
        self.setting('top_p', value, float, 0, 1)

    def do_tokens(self, value):
        self.max_new_tokens = number('tokens', value, int, 1, math.inf, self.max_new_tokens)
        print(f'tokens in an answer: up to {self.max_new_tokens}')

    def do_seed(self, value):
        self.seed = number('seed', value, int, 0, 2 ** 63 - 1, self.seed)
        print(f'seed of the next answer: {self.seed}')

    def do_system(self, value):
        if value:
            value = '' if value == '-' else value
            for speaker in self.speakers:
                speaker.tokenizer.encode(value)  # a ValueError before anything changes
            self.system = value
            for speaker in self.speakers:
                speaker.replay(value, speaker.turns)
        print(f'before the conversation: {self.system!r}' if self.system else 'no text before the conversation')

    def do_load(self, value):
        speaker = self.load_named(value, '/load')
        try:
            speaker.replay(self.system, self.speakers[0].turns)
        except ValueError as error:
            without = '/reset' + ' and /system -' * bool(self.system)
            raise ValueError(f'{value} cannot take this conversation over: {error}; '
                             f'/save it, then {without}, then /load again') from None
        self.speakers[0] = speaker
        print(speaker.describe())

    def do_compare(self, value):
        if value == '-':
            del self.speakers[1:]
            print('one model answers')
            return
        speaker = self.load_named(value, '/compare')
        speaker.replay(self.system, self.speakers[0].turns)  # a ValueError if it cannot encode it
        self.speakers[1:] = [speaker]
        print(f'{speaker.describe()}\nBoth answer from now on; /compare - ends that.')

    def load_named(self, name, word):
        if not name:
            raise ValueError(f'{word} needs the folder of a model, as in {word} out-quickstart')
        return self.load(os.path.expanduser(name))

    def do_top(self, value):
        for speaker in self.speakers:
            lines = analysis.table(speaker.next_tokens(value))
            self.print_name(speaker)
            print('\n'.join(lines))

    def do_undo(self, value):
        if not self.speakers[0].turns:
            raise ValueError('there is nothing to undo')
        said = [speaker.undo() for speaker in self.speakers if speaker.turns][0]
        print(f'forgotten: {said!r}; turns left: {len(self.speakers[0].turns)}')

    def do_retry(self, value):
        if not self.speakers[0].turns:
            raise ValueError('there is nothing to answer again')
        self.say([speaker.undo() for speaker in self.speakers if speaker.turns][0])

    def do_save(self, value):
        if not value:
            raise ValueError('/save needs the name of a file')
        path = os.path.expanduser(value)
        if os.path.lexists(path):
            raise ValueError(f'{path} is already there; choose another name')
        text = '\n'.join([f'[{speaker.name}]\n{self.system}\n' + ''.join(
            f'\n> {turn.text}\n{turn.answer}\n' for turn in speaker.turns) for speaker in self.speakers])
        try:
            with files.write_whole(path, 'wb') as f:
                f.write(text.encode('utf-8', 'backslashreplace'))
        except OSError as error:
            raise ValueError(f'{path} cannot be written ({error.strerror}); choose another name') from None
        print(f'saved to {path}')

    def do_reset(self, value):
        for speaker in self.speakers:
            speaker.begin(self.system)
        print('a new conversation')

    def do_stats(self, value):
        for speaker in self.speakers:
            print(speaker.describe())
            print(f'turns: {len(speaker.turns)}, tokens: {len(speaker.ids())}; the model sees at most the last '
                  f'{speaker.model.config.block_size}')
            if speaker.speed and speaker.speed[1]:
                tokens, first, seconds = speaker.speed
                print(f'the last answer: {tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} a second; the '
                      f'first after {first:.2f} s')
        print(f'settings: {", ".join(f"{name}={value}" for name, value in self.options.items())}, '
              f'tokens={self.max_new_tokens}, seed={self.seed}')

    def do_help(self, value):
        print(HELP)
