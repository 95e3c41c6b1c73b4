"""
A conversation at the terminal: what is typed, the commands, the answers as they come. What a model makes of it is the
Speaker's.
"""
import difflib
import os
import sys

import torch

from common import analysis

HELP = '''Type something; the model answers. Ctrl-C ends an answer, quit or Ctrl-D leaves.
  """               begins several lines, and ends them
  /temp 0.8         temperature; 0 always takes the likeliest token
  /tokens 500       the longest answer
  /topk 200         choose among so many likeliest tokens; 0: all
  /topp 0.9         choose among the likeliest tokens that together have this probability; 1: all
  /seed 1           of the next answer; each one takes the next
  /system TEXT      what stands before the conversation; /system - takes it away
  /load OUT_DIR     go on with another model
  /compare OUT_DIR  let another model answer too, from the same seed; /compare - ends that
  /top              the ten likeliest next tokens, here; /top TEXT: if you said TEXT
  /undo             forget the last answer and what you said
  /retry            answer once more, from the next seed
  /save FILE        write the conversation to a file
  /reset            begin anew
  /stats            speed, and how full the context is
  /help             this
  /quit             leave'''


def number(text, kind, low, high, name):
    """What was typed as a number within limits, or ValueError."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        limits = f'from {low} up' if high == float('inf') else f'from {low} to {high}'
        raise ValueError(f'{name} is a number {limits}, not {text!r}')
    return value


class Chat:
    """
    `load` gives a Speaker for the name of a model, or raises ValueError or OSError. `options` are those of
    generate.sample; stops, a list of texts that end an answer.
    """

    def __init__(self, load, name, max_new_tokens, stops, seed, system='', **options):
        self.load, self.options, self.stops = load, options, stops
        self.max_new_tokens, self.seed, self.system = max_new_tokens, seed, system
        self.speakers = [load(name)]  # two while they are compared
        self.speakers[0].begin(system)

    def talk(self):
        """Read, answer, until the end of the input or `quit`."""
        person = sys.stdin.isatty()
        if person:
            try:
                import readline  # line editing, and the lines before by the arrow keys, in input()
                readline.parse_and_bind('tab: complete')
                names = [line.split()[0] for line in HELP.splitlines() if line.startswith('  /')]
                readline.set_completer_delims(' ')
                readline.set_completer(lambda text, i: ([n for n in names if n.startswith(text)] + [None])[i])
            except ImportError:  # on Windows
                pass
            kind = 'answers' if self.speakers[0].template else 'was not taught to answer: it continues what you type'
            print(f'{self.describe(self.speakers[0])}\nIt {kind}. /help lists what else you can do.')
        while True:
            try:
                line = input('\n> ' if person else '')
                if line.strip() in ('quit', 'exit', '/quit', '/exit'):
                    return
                if line.startswith('"""'):
                    self.say(self.read_on(line[3:], '. ' if person else ''))
                elif line.startswith('/'):
                    word, _, value = line.strip().partition(' ')
                    self.command(word, value.strip())
                elif line:
                    self.say(line)
            except KeyboardInterrupt:
                print('\n(quit or Ctrl-D leaves)' if person else '', flush=True)
            except EOFError:
                print(end='\n' if person else '')
                return
            except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
                print(error)

    def read_on(self, text, prompt):
        """Lines up to one that ends with triple quotes."""
        while not text.endswith('"""'):
            text += '\n' + input(prompt)
        return text[:-3].strip('\n')

    def say(self, text):
        """Let each speaker answer, from one seed."""
        for speaker in self.speakers:
            speaker.encode(text)  # a ValueError now, and nobody answers
        seed, self.seed = self.seed, self.seed + 1
        for speaker in self.speakers:
            if len(self.speakers) > 1:
                print(f'[{speaker.name}]')
            generator = torch.Generator(speaker.device).manual_seed(seed)
            try:
                for piece in speaker.answer(text, self.max_new_tokens, self.stops, generator=generator, **self.options):
                    print(piece, end='', flush=True)
            except KeyboardInterrupt:
                print(' [interrupted]', end='')
            print(flush=True)

    def command(self, word, value):
        """Do what a line that begins with / says. ValueError for what it cannot mean."""
        known = ['/' + name.removeprefix('do_') for name in dir(self) if name.startswith('do_')]
        if word.lower() not in known:
            close = difflib.get_close_matches(word.lower(), known, n=1)
            raise ValueError(f'{word} is not a command' + (f'; did you mean {close[0]}?' if close else '; /help lists '
                             'them, and what stands between """ can begin with a /'))
        getattr(self, f'do_{word[1:].lower()}')(value)

    def setting(self, name, value, kind, low, high, label):
        """Set a sampling option, if there is a value, and print it."""
        if value:
            self.options[name] = number(value, kind, low, high, label)
        print(f'{label}: {self.options[name]}')

    def do_temp(self, value):
        self.setting('temperature', value, float, 0, float('inf'), 'temperature')

    def do_topk(self, value):
        self.setting('top_k', value, int, 0, float('inf'), 'top_k')

    def do_topp(self, value):
        self.setting('top_p', value, float, 0, 1, 'top_p')

    def do_tokens(self, value):
        if value:
            self.max_new_tokens = number(value, int, 1, float('inf'), 'tokens')
        print(f'tokens in an answer: up to {self.max_new_tokens}')

    def do_seed(self, value):
        if value:
            self.seed = number(value, int, 0, 2 ** 63 - 1, 'seed')
        print(f'seed of the next answer: {self.seed}')

    def do_system(self, value):
        if value:
            value = '' if value == '-' else value
            for speaker in self.speakers:
                speaker.tokenizer.encode(value)  # a ValueError now, and nothing changes
            self.system = value
            for speaker in self.speakers:
                speaker.retell(value, speaker.turns)
        print(f'before the conversation: {self.system!r}' if self.system else 'nothing stands before the conversation')

    def do_load(self, value):
        speaker = self.load_named(value, '/load')
        try:
            speaker.retell(self.system, self.speakers[0].turns)
        except ValueError as error:
            print(f'the conversation begins anew, as {error}')
            self.system = ''
            speaker.begin('')
            del self.speakers[1:]
        self.speakers[0] = speaker
        print(self.describe(speaker))

    def do_compare(self, value):
        if value == '-':
            del self.speakers[1:]
            print('one model answers')
            return
        speaker = self.load_named(value, '/compare')
        speaker.retell(self.system, self.speakers[0].turns)  # a ValueError if it cannot take part
        self.speakers[1:] = [speaker]
        print(f'{self.describe(speaker)}\nBoth answer from now on; /compare - ends that.')

    def load_named(self, name, word):
        if not name:
            raise ValueError(f'{word} needs the folder of a model, as in {word} out-quickstart')
        return self.load(name)

    def do_top(self, value):
        for speaker in self.speakers:
            print('\n'.join([f'[{speaker.name}]'] * (len(self.speakers) > 1)
                            + analysis.table(speaker.next_tokens(value))))

    def do_undo(self, value):
        if not self.speakers[0].turns:
            raise ValueError('there is nothing to undo')
        said = [speaker.undo() for speaker in self.speakers if speaker.turns][0]
        print(f'forgotten: {said!r}; turns left: {len(self.speakers[0].turns)}')

    def do_retry(self, value):
        if not self.speakers[0].turns:
            raise ValueError('there is nothing to answer once more')
        self.say([speaker.undo() for speaker in self.speakers if speaker.turns][0])

    def do_save(self, value):
        if not value:
            raise ValueError('/save needs the name of a file')
        if os.path.exists(value):
            raise ValueError(f'{value} is already there; choose another name')
        with open(value, 'w', encoding='utf-8') as f:
            f.write('\n'.join([f'[{speaker.name}]\n{self.system}\n' + ''.join(
                f'\n> {turn.text}\n{turn.answer}\n' for turn in speaker.turns) for speaker in self.speakers]))
        print(f'saved to {value}')

    def do_reset(self, value):
        for speaker in self.speakers:
            speaker.begin(self.system)
        print('a new conversation')

    def do_stats(self, value):
        for speaker in self.speakers:
            print(self.describe(speaker))
            print(f'turns: {len(speaker.turns)}, tokens: {len(speaker.ids())}; the model looks at the last '
                  f'{speaker.model.config.block_size} at most')
            if speaker.speed and speaker.speed[1]:
                tokens, first, seconds = speaker.speed
                print(f'the last answer: {tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} a second; the '
                      f'first after {first:.2f} s')
        print(f'settings: {", ".join(f"{name}={value}" for name, value in self.options.items())}, '
              f'tokens={self.max_new_tokens}, seed={self.seed}')

    def do_help(self, value):
        print(HELP)

    def describe(self, speaker):
        """A model in one sentence."""
        config, weight = speaker.model.config, speaker.model.transformer.wte.weight
        return (f'{os.path.normpath(speaker.name)}: {config.n_layer} layers, {config.n_embd} wide, a context of '
                f'{config.block_size} tokens, {str(weight.dtype).removeprefix("torch.")} on {speaker.device}.')
