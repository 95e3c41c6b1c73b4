"""A conversation in the terminal. Each model that answers is a Speaker."""
import contextlib
import difflib
import math
import os
import re
import sys
import unicodedata

import torch

from common import console
from common.device import is_out_of_memory
from common.sampling import analysis, transcript
from common.sampling.speaker import Turn
from common.sampling.terminal import LineEditor
from common.sampling.words import language

HELP = {'en': '''Type something; the model answers. Ctrl-C ends an answer, /bye or Ctrl-D leaves.
  """               begins and ends a text of several lines, also after /system
  /temp 0.8         temperature; 0 always takes the likeliest token
  /tokens 500       the most tokens in an answer
  /topk 200         choose among this many of the likeliest tokens; 0: all
  /topp 0.9         choose among the likeliest tokens that together have this probability; 1: all
  /minp 0.05        choose among tokens at least this much as likely as the likeliest; 0: all
  /penalty 1.1      above 1 makes tokens that are already there less likely
  /seed 1           the seed of the next answer; it goes up by 1 with each answer
  /system TEXT      a text before the conversation; /system - removes it
  /set NAME VALUE   any of these in other words: /set parameter temperature 0.8, /set num_predict 500
  /show             what is set
  /load MODEL       continue with another model, named as in --init_from; FILE.json: with a conversation that was saved
  /compare MODEL    let another model answer too, from the same seed; /compare - ends that
  /top              the ten likeliest next tokens; /top TEXT: the ten after TEXT
  /undo             forget the last answer and what you said
  /retry, /regen    answer again, from the next seed
  /save FILE        write the conversation to a file; FILE.json can be loaded again
  /reset, /clear    start over
  /stats            speed, and how full the context is
  /help, /?         this list
  /bye, /quit       leave''',
        'ko': '''글을 입력하면 모델이 답하거나 이어 씁니다. Ctrl-C는 답을 끊고, /bye나 Ctrl-D는 대화를 끝냅니다.
  """               여러 줄로 된 글의 앞뒤에 붙입니다. /system 뒤에도 쓸 수 있습니다
  /temp 0.8         온도. 0이면 언제나 확률이 가장 높은 토큰을 고릅니다
  /tokens 500       답 하나의 최대 토큰 수
  /topk 200         확률이 높은 순서로 이만큼의 토큰 중에서 고릅니다. 0이면 전체
  /topp 0.9         확률이 높은 것부터 더해 이 값이 될 때까지의 토큰 중에서 고릅니다. 1이면 전체
  /minp 0.05        확률이 (가장 높은 확률 x 이 값) 이상인 토큰 중에서 고릅니다. 0이면 전체
  /penalty 1.1      1보다 크면 이미 나온 토큰이 덜 나옵니다
  /seed 1           다음 답의 시드. 답할 때마다 1씩 커집니다
  /system TEXT      대화 맨 앞에 놓을 글. 지우려면 /system -
  /set NAME VALUE   위의 설정을 다른 이름으로: /set parameter temperature 0.8, /set num_predict 500
  /show             지금 설정
  /load MODEL       --init_from과 같은 이름의 다른 모델로 이어 갑니다. FILE.json이면 저장한 대화로 이어 갑니다
  /compare MODEL    다른 모델도 같은 시드로 답하게 합니다. 그만하려면 /compare -
  /top              다음에 올 확률이 가장 높은 토큰 열 개. TEXT 다음을 보려면 /top TEXT
  /undo             마지막으로 한 말과 그 답을 지웁니다
  /retry, /regen    다음 시드로 답을 다시 받습니다
  /save FILE        대화를 파일로 저장합니다. FILE.json이면 나중에 다시 불러올 수 있습니다
  /reset, /clear    대화를 처음부터 다시 시작합니다
  /stats            속도, 그리고 문맥이 얼마나 찼는지
  /help, /?         이 목록
  /bye, /quit       대화를 끝냅니다'''}
KEPT = {'en': 'What you type is kept for the next chat in', 'ko': '입력한 줄을 다음 대화에서도 쓸 수 있게 보관하는 파일:'}

SETTINGS = {  # command: (what it sets, its type, the lowest and the highest value)
    'temp': ('temperature', float, 0, math.inf),
    'tokens': ('max_new_tokens', int, 1, 10**9),
    'topk': ('top_k', int, 0, math.inf),
    'topp': ('top_p', float, 0, 1),
    'minp': ('min_p', float, 0, 1),
    'penalty': ('repetition_penalty', float, 0.01, 100),
    'seed': ('seed', int, 0, 2**63 - 1)}
ALIASES = {  # of nanoGPT, ollama and llama.cpp, without _ and -
    'temperature': 'temp', 'maxnewtokens': 'tokens', 'numpredict': 'tokens', 'npredict': 'tokens',
    'repetitionpenalty': 'penalty', 'repeatpenalty': 'penalty',
    'bye': 'quit', 'exit': 'quit', 'clear': 'reset', 'new': 'reset', 'regen': 'retry', '?': 'help'}


def command_name(word):
    """The name of a command or a setting, however it is written."""
    name = word.lower().replace('_', '').replace('-', '')
    return ALIASES.get(name, name)


def number(name, text, kind, low, high):
    """`text` as a number from `low` to `high`, but not infinite. ValueError if it is no such number."""
    try:
        value = kind(unicodedata.normalize('NFKC', text))  # a Korean keyboard may give digits of double width
    except ValueError:
        value = math.nan
    if not low <= value <= high or value == math.inf:
        limits = f'from {low} up' if high == math.inf else f'from {low} to {high}'
        raise ValueError(f'{name} is {"a whole number" if kind is int else "a number"} {limits}, not {text!r:.80}')
    return value


def describe_error(error):
    """What an exception says, for a person."""
    if isinstance(error, OSError) and error.strerror:
        message = f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    elif isinstance(error, (ValueError, OSError)) and str(error):  # meant for the user
        message = str(error)
    elif is_out_of_memory(error):
        message = f'out of memory: {str(error).strip().partition(chr(10))[0]}'
    else:
        first = str(error).strip().partition('\n')[0]
        message = f'{type(error).__name__}: {first} (not your mistake; /save keeps the conversation)'
    return console.visible(message)


class Chat:
    """load(name) returns a Speaker, or raises an exception. `options` are those of generate.next_token."""

    def __init__(self, load, name, max_new_tokens, stops, seed, system='', **options):
        self.load, self.stops, self.system = load, stops, system
        self.settings = {**options, 'max_new_tokens': max_new_tokens, 'seed': seed}  # the seed of the next answer
        self.first_seed = seed
        self.language = language()  # now: a LineEditor may set LC_ALL
        speaker = load(name)
        speaker.begin(system)
        self.speakers = [speaker]  # two while models are compared; all have the same number of turns

    def talk(self):
        """
        Read and answer until the end of the input or /bye. After an error in a command the conversation goes on as it
        was before, after one in an answer from what was shown. OSError if there is no output any more.
        """
        self.editor = LineEditor([line.split()[0].strip(',') for line in HELP['en'].splitlines()
                                  if line.startswith('  /')])
        if self.editor.at_terminal:
            kind = 'answers' if self.speakers[0].template else 'was not taught to answer: it continues what you type'
            print(f'{self.speakers[0].describe()}\nIt {kind}. /help lists what else you can do.')
        self.over = False
        while not self.over:
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C, while the first one is dealt with
                self.take_lines()

    def take_lines(self):
        """Read and answer until the chat is over."""
        while not self.over:
            try:
                line = self.editor.read('\n> ')
                if line is None or line.strip() in ('quit', 'exit'):
                    self.over = True
                elif line.startswith('"""'):
                    self.say(self.read_block(line[3:]))
                elif line.startswith('/'):
                    self.command(line)
                elif line:
                    self.say(line)
            except KeyboardInterrupt:
                print('\n(/bye or Ctrl-D leaves)' if self.editor.at_terminal else '', flush=True)
            except BaseException as error:  # what is written in Rust raises some that are no Exceptions
                print(describe_error(error), flush=True)  # if it is printing that failed, this ends the chat

    def read_block(self, text):
        """The text up to the closing quotes. ValueError if the input ends before."""
        while not text.rstrip().endswith('"""'):
            line = self.editor.read('. ')
            if line is None:
                raise ValueError('the text has no """ at its end, and was not sent')
            text += '\n' + line
        return text.rstrip()[:-3].strip('\n')

    def ask_each(self, question):
        """[question(speaker) for each speaker]. If there are several, a ValueError names the one that fails."""
        found = []
        for speaker in self.speakers:
            try:
                found.append(question(speaker))
            except ValueError as error:
                raise ValueError(f'{speaker.title()}: {error}' if len(self.speakers) > 1 else str(error)) from None
        return found

    def say(self, text):
        """
        Let each speaker answer, from the same seed. Returns False if they all failed before they said anything; the
        conversation is then as it was before.
        """
        ids = self.ask_each(lambda speaker: speaker.encode(text))  # a ValueError before any of them answers
        options, count = dict(self.settings), len(self.speakers[0].turns)
        seed, failed = options.pop('seed'), []
        for line in filter(None, [speaker.overflow(new) for speaker, new in zip(self.speakers, ids)]):
            print(line, file=sys.stderr)
        for speaker, new in zip(self.speakers, ids):
            try:
                self.print_name(speaker)
                generator = torch.Generator(speaker.device).manual_seed(seed)
                pieces = speaker.answer(text, new, stops=self.stops, generator=generator, **options)
                with contextlib.closing(pieces):  # at once, so that the turn is there
                    for piece in pieces:
                        print(console.visible(piece), end='', flush=True)
            except KeyboardInterrupt:
                print(' [interrupted]', end='')
            except BaseException as error:  # of this speaker; the other one still answers
                print(f' [ended: {describe_error(error)}]', end='')
                failed += [speaker] if not any(turn.answer for turn in speaker.turns[count:]) else []
            print(flush=True)
        if failed == self.speakers:
            for speaker in self.speakers:
                del speaker.turns[count:]
                speaker.empty_cache()
            return False
        for speaker, new in zip(self.speakers, ids):
            if len(speaker.turns) == count:  # interrupted before it began
                speaker.turns.append(Turn(text, new, '', [], False))
        self.settings['seed'] = (seed + 1) % 2**63
        return True

    def print_name(self, speaker):
        """A line that tells compared models apart."""
        if len(self.speakers) > 1:
            print(f'[{speaker.title()}]')

    def command(self, line):
        """Run a line that begins with /. ValueError if there is no such command."""
        word, value = re.fullmatch(r'(\S+)\s*(.*?)\s*', line, re.DOTALL).groups()
        name = command_name(word[1:])
        commands = {name.removeprefix('do_'): getattr(self, name) for name in dir(self) if name.startswith('do_')}
        if name in SETTINGS:
            self.change(name, value)
        elif name in commands:
            commands[name](value)
        else:
            close = difflib.get_close_matches(name, [*commands, *SETTINGS, *ALIASES], n=1)
            hint = f'did you mean /{close[0]}?' if close else '/help lists them; a text within """ can begin with a /'
            raise ValueError(f'{word[:80]} is not a command; {hint}')

    def change(self, name, value):
        """Change a setting, if there is a value, and print it."""
        key, *limits = SETTINGS[name]
        if value:
            self.settings[key] = number(key, value, *limits)
        print(f'{key}: {self.settings[key]}')

    def do_set(self, value):
        name, value = re.fullmatch(r'(?:parameter\b\s*)?([\w-]*)[\s=]*(.*)', value, re.DOTALL).groups()
        name = command_name(name)
        if name == 'system':
            quoted = None if value.startswith('"""') else re.fullmatch(r'"(.*)"', value, re.DOTALL)
            self.do_system(quoted[1] or '-' if quoted else value)
        elif name in SETTINGS:
            self.change(name, value)
        else:
            raise ValueError(f'/set knows {", ".join(key for key, *_ in SETTINGS.values())} and system, as in '
                             '/set temperature 0.3')

    def do_show(self, value):
        for speaker in self.speakers:
            print(speaker.describe())
        for key, value in self.settings.items():
            print(f'{key}: {value}' + f' for the next answer; the chat began with {self.first_seed}' * (key == 'seed'))
        print(f'stop: {self.stops}\nsystem: {self.system!r:.300}')

    def do_system(self, value):
        if value.startswith('"""'):
            value = self.read_block(value[3:]) or '-'
        if value:
            value = '' if value == '-' else value
            self.speakers, self.system = self.ask_each(
                lambda speaker: speaker.replay(value, speaker.turns, speaker.tokenizer)), value
        print(f'before the conversation: {self.system!r:.300}' if self.system else 'no text before the conversation')

    def do_load(self, value):
        if transcript.is_json(value):
            system, turns = transcript.read(os.path.expanduser(value))
            self.speakers, self.system = self.ask_each(lambda speaker: speaker.replay(system, turns)), system
            print(f'turns: {len(turns)}, from {console.visible(value)}')
            return
        self.speakers[0] = self.load_other(value, '/load')
        print(self.speakers[0].describe())

    def do_compare(self, value):
        if value == '-':
            del self.speakers[1:]
            print('one model answers')
        else:
            self.speakers[1:] = [self.load_other(value, '/compare')]
            print(f'{self.speakers[1].describe()}\nBoth answer from now on; /compare - ends that.')

    def load_other(self, name, word):
        """Another model, with the conversation so far. ValueError if there is none, or it cannot encode that."""
        if not name:
            raise ValueError(f'{word} needs the name of a model, as in {word} out-quickstart')
        speaker = self.load(os.path.expanduser(name))
        try:
            return speaker.replay(self.system, self.speakers[0].turns, self.speakers[0].tokenizer)
        except ValueError as error:
            raise ValueError(f'{name} cannot take this conversation over: {error}; /save it, then /reset'
                             f'{" and /system -" * bool(self.system)}, then {word} again') from None

    def do_top(self, value):
        for speaker in self.speakers:
            lines = '\n'.join(analysis.table(speaker.next_tokens(value)))
            self.print_name(speaker)
            print(lines)

    def do_undo(self, value):
        if not self.speakers[0].turns:
            raise ValueError('there is nothing to undo')
        said = [speaker.undo().text for speaker in self.speakers][0]
        print(f'forgotten: {said!r:.300}; turns left: {len(self.speakers[0].turns)}')

    def do_retry(self, value):
        if not self.speakers[0].turns:
            raise ValueError('there is nothing to answer again')
        turns, answered = [speaker.undo() for speaker in self.speakers], False
        try:
            answered = self.say(turns[0].text)
        finally:
            if not answered:
                for speaker, turn in zip(self.speakers, turns):
                    speaker.turns.append(turn)

    def do_save(self, value):
        if not value:
            raise ValueError('/save needs the name of a file')
        transcript.write(os.path.expanduser(value), self.system, self.speakers)
        print(f'saved to {console.visible(os.path.expanduser(value))}')

    def do_reset(self, value):
        self.speakers = [speaker.replay(self.system, []) for speaker in self.speakers]
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

    def do_help(self, value):
        print(HELP[self.language])
        if self.editor.history:
            print(f'{KEPT[self.language]} {self.editor.history}')

    def do_quit(self, value):
        self.over = True
