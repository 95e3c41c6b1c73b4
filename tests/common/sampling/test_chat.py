"""The chat: as a person sees it through a pseudo-terminal, and which ids the model gets."""
import errno
import io
import os
import re
import select
import signal
import sys
import unicodedata
from unittest.mock import Mock, call

import pytest
import torch

from common import console, files, generate
from common.sampling import chat as chat_module, transcript
from common.sampling.chat import Chat
from common.sampling.speaker import Speaker, Turn
from common.tokenizer import BPETokenizer, CharTokenizer, train_bpe
from model import GPT, GPTConfig
from person import PROMPT, Person
from running import HANG, ROOT, hook, ok

def messages(done):
    """The lines on stderr, without those on the iteration of the weights, the seed, and the context."""
    told = 'the run has come to iteration', 'the seed of this chat', 'the conversation has'
    return [line for line in done.stderr.splitlines() if not any(text in line for text in told)]


@pytest.fixture
def person(tmp_path):
    """person(*args, **env): a Person who started sample.py in a temporary folder."""
    people = []

    def start(*args, **env):
        people.append(Person([sys.executable, os.path.join(ROOT, 'sample.py'), '--device=cpu', *args], tmp_path, env))
        return people[-1]
    yield start
    for one in people:
        one.end()


@pytest.fixture
def chat(person, trained):
    one = person('--chat=True', f'--out_dir={trained}', '--max_new_tokens=30', '--seed=1337')
    assert 'continues what you type' in one.wait_for(PROMPT)
    return one


def test_a_conversation(chat, trained, tmp_path):
    """Type, change settings, look, undo, and leave."""
    first = chat.type('the cat')
    assert len(first.strip('\n')) > 0
    assert chat.type('/undo') == "forgotten: 'the cat'; turns left: 0"
    assert chat.type('/seed 1337') == 'seed: 1337'
    assert chat.type('the cat') == first
    assert chat.type('/retry') != first
    assert chat.type('/temp 0') == 'temperature: 0.0'
    assert chat.type('/tokens 5') == 'max_new_tokens: 5'
    assert len(chat.type('a dog').splitlines()[-1]) <= 6
    assert chat.type('/topk 3') == 'top_k: 3' and chat.type('/topp 0.9') == 'top_p: 0.9'
    assert chat.type('/topk') == 'top_k: 3'
    top = chat.type('/top').splitlines()
    assert len(top) == 10 and all('%' in line for line in top)
    assert 'turns: 2' in chat.type('/stats') and 'a second' in chat.type('/stats')
    assert chat.type('/save talk.txt') == 'saved to talk.txt'
    assert '> the cat\n' in (tmp_path / 'talk.txt').read_text() and '> a dog\n' in (tmp_path / 'talk.txt').read_text()
    assert 'already there' in chat.type('/save talk.txt')
    assert chat.type('/system the bird') == "before the conversation: 'the bird'"
    assert chat.type('/reset') == 'a new conversation'
    assert chat.type(f'/load {trained}').startswith(trained)
    assert '/compare MODEL' in chat.type('/help')
    chat.leave('/quit')


def test_a_mistake_is_answered_and_the_conversation_goes_on(chat):
    for line, expected in (('/foo', '/foo is not a command; /help'), ('/Tmp 1', 'did you mean /temp?'),
                           ('/temp hot', "from 0 up, not 'hot'"),
                           ('/temp -1', 'from 0 up'), ('/temp nan', 'from 0 up'), ('/topp 2', 'from 0 to 1'),
                           ('/tokens 0', 'from 1 to'), ('/topk 1.5', 'from 0 up'), ('/seed x', 'seed is a whole'),
                           ('/load', '/load needs'), ('/load nowhere.pt', 'nowhere.pt'), ('/undo', 'nothing to undo'),
                           ('/retry', 'nothing to answer'), ('/save', 'needs the name'), ('/save /no/x', 'No such'),
                           ('#@', 'does not know the characters'), ('/system #', 'does not know'),
                           ('/__init__', 'not a command')):
        assert expected in chat.type(line), line
    assert chat.type('the cat') and chat.type('quit the cat') and chat.type(' /undo')
    chat.leave('exit')


def test_ctrl_c_ends_the_answer_and_not_the_program(chat):
    assert chat.type('/tokens 1000000')
    os.write(chat.fd, b'the cat\n')
    chat.wait_for('the cat\n')
    assert select.select([chat.fd], [], [], HANG)[0]
    os.killpg(chat.process.pid, signal.SIGINT)
    assert '[interrupted]' in chat.wait_for(PROMPT)
    assert 'turns: 1' in chat.type('/stats')
    chat.type('/tokens 5')
    assert chat.type('a dog')
    for _ in range(HANG):  # now while it waits for a line; a signal just before that is seen only at the next key
        os.killpg(chat.process.pid, signal.SIGINT)
        if select.select([chat.fd], [], [], 1)[0]:
            break
    assert '/bye or Ctrl-D leaves' in chat.wait_for(PROMPT)
    os.write(chat.fd, b'\x04')
    assert chat.process.wait(timeout=HANG) == 0


@pytest.mark.slow
def test_several_lines_and_a_line_corrected(chat):
    chat.type('/temp 0')
    os.write(chat.fd, b'"""the cat\n')
    chat.wait_for('\n. ')
    chat.type('a dog"""')
    assert chat.type('/undo') == "forgotten: 'the cat\\na dog'; turns left: 0"
    os.write(chat.fd, b'the caz\x7ft\n')
    chat.wait_for(PROMPT)
    assert "'the cat'" in chat.type('/undo')
    chat.type('/temp 0.5')
    assert 'does not know' in chat.type('"""/the cat"""')  # a text, not a command
    chat.leave('quit')


def test_two_models_answer_the_same_from_the_same_seed(chat, trained):
    chat.type('the cat')
    assert 'Both answer' in chat.type(f'/compare {trained}')
    told, first, second = chat.type('a dog').split(f'[{trained}]\n')
    assert told.count('sees the last 16 of them') == 2
    assert first.strip('\n') == second.strip('\n') != ''
    assert 'turns left: 1' in chat.type('/undo') and 'turns left: 0' in chat.type('/undo')
    assert 'does not know' in chat.type('#@') and 'nothing to undo' in chat.type('/undo')
    chat.type('/compare -')
    assert trained not in chat.type('a dog')
    chat.leave('quit')


def test_with_no_model_yet_one_can_be_trained(person, tmp_path):
    one = person('--chat=True')
    assert 'Train a first one now' in one.wait_for('[Y/n] ')
    os.write(one.fd, b'n\n')
    one.wait_for('train.py config/quickstart.py')
    assert one.process.wait(timeout=HANG) == 1


@pytest.mark.slow
def test_without_an_out_dir_the_newest_model_answers(person, trained, tmp_path):
    (tmp_path / 'out-mine').mkdir()
    os.link(os.path.join(trained, 'ckpt.pt'), tmp_path / 'out-mine' / 'ckpt.pt')
    one = person('--chat=True')
    assert '--out_dir=out-mine' in one.wait_for(PROMPT)
    one.leave('quit')


def test_without_a_terminal_the_command_to_train_is_printed(run):
    done = run('sample.py', '--chat=True')
    assert done.returncode == 2 and 'train.py config/quickstart.py' in done.stderr and done.stdout == ''


def test_lines_can_be_piped_in(run, trained):
    lines = '/tokens 5\nthe cat\n/undo\n'
    done = run('sample.py', '--chat=True', f'--out_dir={trained}', '--device=cpu', stdin=lines)
    assert done.returncode == 0 and messages(done) == []
    assert done.stdout.endswith("forgotten: 'the cat'; turns left: 0\n")


def test_a_line_that_cannot_be_decoded_is_answered_and_takes_no_other_along(command, tmp_path):
    code = r"""
import os
piped, end = os.pipe()
os.write(end, b'/tokens 5\na dog\nab\xff\n/undo\n')
os.close(end)
os.dup2(piped, 0)
sys.stdin = open(0, encoding='utf-8', errors='strict', closefd=False)"""
    answers = ok(hook(code, *command, cwd=tmp_path)).stdout.splitlines()
    assert any('the byte \\xff, which is not UTF-8' in line for line in answers)
    assert answers[-1] == "forgotten: 'a dog'; turns left: 0"


def test_a_terminal_that_is_gone_ends_the_chat(chat):
    os.write(chat.fd, b'/tokens 1000000\nthe cat\n')
    chat.wait_for('the cat\n')
    os.dup2(os.open(os.devnull, os.O_RDONLY), chat.fd)
    assert chat.process.wait(timeout=HANG) == 1


@pytest.mark.parametrize('failure, code, expected', [
    ("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", 1, ['sample.py: the output cannot be written: No space left on '
                                                          'device']),
    ('piped, end = os.pipe(); os.dup2(end, 1); os.close(piped)', 0, [])], ids=['full disk', 'pipe without a reader'])
def test_answers_that_cannot_be_written_end_the_chat(command, tmp_path, failure, code, expected):
    stdin = 'piped, end = os.pipe(); os.write(end, b"the cat\\n" * 9); os.close(end); os.dup2(piped, 0)\n'
    done = hook(f'import os\n{stdin}{failure}', *command, cwd=tmp_path)
    assert done.returncode == code and messages(done) == expected


@pytest.fixture
def command(trained):
    """sample.py and its options for a chat over a pipe."""
    return ['sample.py', '--chat=True', f'--out_dir={trained}', '--device=cpu']


CHARS = CharTokenizer(sorted(set('### Instruction:\n\n### Response:\nabcdefgh xyz')))
TEMPLATE = '### Instruction:\n{instruction}\n\n### Response:\n'


@pytest.fixture(params=[False, True], ids=['classic', 'modern'])
def model(request):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=200, vocab_size=CHARS.vocab_size, n_layer=2, n_head=2, n_embd=32,
                          modern=request.param)).eval()
    with torch.no_grad():
        for p in model.parameters():  # at 0 all inputs would look alike, and a smear of 0 would hide mistakes
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.fixture
def speaker(model):
    return Speaker('plain', model, CHARS, {})


def answer(speaker, text, stops=()):
    return ''.join(speaker.answer(text, speaker.encode(text), 8, stops, temperature=0))


def continued(model, text, **options):
    """A text with the 8 characters that the model alone writes after it."""
    ids = model.generate(torch.tensor([CHARS.encode(text)]), 8, temperature=0, **options)
    return CHARS.decode(ids[0].tolist())


def test_a_tuned_model_is_asked_in_the_form_it_was_trained_on(model):
    speaker = Speaker('tuned', model, CHARS, {'prompt': TEMPLATE})
    first, second = answer(speaker, 'ab x'), answer(speaker, 'cd')
    asked = [TEMPLATE.replace('{instruction}', text) for text in ('ab x', 'cd')]
    assert CHARS.decode(speaker.ids()) == f'{asked[0]}{first}\n\n{asked[1]}{second}'


def test_end_of_text_stands_between_the_turns_of_a_tuned_model(model):
    """And before the first turn or a system text, but not after that; whether the answer was cut short or not."""
    tokenizer = CharTokenizer(['@', *CHARS.chars])
    tokenizer.end_id = tokenizer.start_id = 0
    speaker = Speaker('tuned', model, tokenizer, {'prompt': TEMPLATE})
    asked = [tokenizer.encode(TEMPLATE.replace('{instruction}', text)) for text in ('ab', 'cd')]
    x = tokenizer.encode('x')
    for ended in (True, False):
        speaker.begin('')
        turn = Turn('ab', speaker.encode('ab'), 'x', x + [0] if ended else x, ended)
        speaker.turns.append(turn)
        assert speaker.ids() + speaker.encode('cd') == [0] + asked[0] + x + [0] + asked[1]
        speaker = speaker.replay('xyz', speaker.turns, tokenizer)
        expected = [0] + tokenizer.encode('xyz\n\n') + asked[0] + x + [0] + asked[1]
        assert speaker.ids() + speaker.encode('cd') == expected
        other = Speaker('other', model, tokenizer, {'prompt': TEMPLATE})
        other = other.replay('xyz', [turn])
        assert other.ids() == speaker.ids()


def test_any_other_model_continues_the_text(speaker):
    speaker.begin('xyz')
    first, second = answer(speaker, 'ab'), answer(speaker, 'cd')
    assert CHARS.decode(speaker.ids()) == f'xyz\nab{first}\ncd{second}'


def test_the_cache_carries_over_turns_and_changes_no_token(model, speaker, monkeypatch):
    lengths, forward = [], model.forward

    def recorded(idx, **options):
        lengths.append(idx.size(1))
        return forward(idx, **options)
    monkeypatch.setattr(model, 'forward', recorded)
    text = ''
    for said in ('ab', 'cdefg', 'x'):
        lengths.clear()
        given = answer(speaker, said)
        # new are the last token of the answer before, which no step has seen yet, the line break, and the text
        assert lengths == [len(said) + (2 if text else 0)] + [1] * 7
        text += ('\n' if text else '') + said
        assert continued(model, text, use_cache=False) == text + given
        text += given


def test_after_undo_the_answers_are_as_if_the_turn_had_not_been(model, speaker):
    fresh = Speaker('plain', model, CHARS, {})
    assert answer(speaker, 'ab') == answer(fresh, 'ab')
    answer(speaker, 'cdefgh')
    assert speaker.undo().text == 'cdefgh'
    assert answer(speaker, 'x y') == answer(fresh, 'x y')


def test_after_an_interrupt_within_a_token_the_conversation_goes_on_from_what_was_shown(model, speaker, monkeypatch):
    attend, calls = model.transformer.h[1].attn.forward, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return attend(*args)
    monkeypatch.setattr(model.transformer.h[1].attn, 'forward', interrupted)
    pieces = speaker.answer('cdefgh', CHARS.encode('cdefgh'), 8, [], temperature=0)
    assert len(next(pieces) + next(pieces) + next(pieces)) == 3
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    shown = 'cdefgh' + speaker.turns[0].answer
    assert len(shown) == 9 and CHARS.decode(speaker.ids()) == shown
    assert continued(model, shown + '\nab') == shown + '\nab' + answer(speaker, 'ab')


def test_a_stop_string_is_forgotten_and_the_conversation_goes_on_without_it(model, speaker):
    whole = continued(model, 'ab')[2:]
    stop = whole[3:5]
    shown = whole[:whole.index(stop)]
    assert answer(speaker, 'ab', [stop]) == shown
    text = f'ab{shown}\ncd'
    assert continued(model, text) == text + answer(speaker, 'cd')


def test_a_tuned_model_does_not_write_the_next_instruction(model, monkeypatch):
    """The answer ends where the template begins."""
    written = iter(CHARS.encode('abc\n\n### Instruction:\nxyz'))
    monkeypatch.setattr('common.generate.sample', lambda logits, **options: torch.tensor([[next(written)]]))
    speaker = Speaker('tuned', model, CHARS, {'prompt': TEMPLATE})
    assert ''.join(speaker.answer('h', speaker.encode('h'), 99, [])) == 'abc\n\n'


def test_a_template_with_no_place_for_what_is_typed_is_refused(talk, conversation, model):
    conversation.load = lambda name: Speaker(name, model, CHARS, {'prompt': 'a {x} b'})
    for word in ('/load', '/compare'):
        assert "other cannot chat: its dataset has the prompt 'a {x} b'" in talk(f'{word} other')[0]


@pytest.mark.parametrize('step', [None, 'static'])
def test_past_the_context_the_conversation_goes_on(model, step):
    speaker = Speaker('plain', model, CHARS, {}, step and (lambda ids, cache: model(ids, cache=cache)))
    for i in range(40):
        assert len(answer(speaker, 'abcdefgh'[:i % 8 + 1])) == 8
    assert len(speaker.ids()) > 2 * 200
    assert answer(speaker, 'x' * 300) and len(speaker.turns) == 41


def test_without_line_breaks_in_the_vocabulary_turns_follow_directly(model):
    speaker = Speaker('plain', model, CharTokenizer('abcd'), {})
    first, second = answer(speaker, 'ab'), answer(speaker, 'cd')
    assert speaker.tokenizer.decode(speaker.ids()) == f'ab{first}cd{second}'


def test_another_model_takes_the_conversation_over(model):
    one, other = Speaker('one', model, CHARS, {}), Speaker('other', model, CharTokenizer(CHARS.chars[::-1]), {})
    answer(one, 'ab')
    answer(one, 'cd')
    other = other.replay('xyz', one.turns, one.tokenizer)
    assert other.tokenizer.decode(other.ids()) == f'xyz\nab{one.turns[0].answer}\ncd{one.turns[1].answer}'
    with pytest.raises(ValueError, match='does not know'):
        Speaker('small', model, CharTokenizer('ab'), {}).replay('', one.turns)


@pytest.fixture
def conversation(model, monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.StringIO())  # no terminal, even with pytest -s
    return Chat(lambda name: Speaker(name, model, CHARS, {}), 'plain', 8, ['\n'], 1, temperature=0)


@pytest.fixture
def talk(conversation, monkeypatch, capsys):
    """talk(*lines): the lines that the chat prints when these are typed. An exception is what reading raises."""
    def say(*lines):
        monkeypatch.setattr('builtins.input', Mock(side_effect=[*lines, EOFError]))
        conversation.talk()
        return capsys.readouterr().out.splitlines()
    return say


@pytest.mark.parametrize('error, expected', [
    (ValueError('x.pt is damaged'), 'x.pt is damaged'), (PermissionError(13, 'Permission denied'), 'Permission denied'),
    (MemoryError(), 'out of memory'), (torch.OutOfMemoryError('CUDA out of memory. Tried ...'), 'out of memory: CUDA'),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto"), 'out of memory: Default'),
    (KeyError('chars'), "KeyError: 'chars'"), (RecursionError('too deep'), 'RecursionError: too deep')])
def test_a_model_that_does_not_load_leaves_the_conversation_as_it_was(talk, conversation, error, expected):
    conversation.load = Mock(side_effect=error)
    for word in ('/load', '/compare'):
        lines = talk('ab', f'{word} x.pt', 'cd')
        assert len(lines) == 3 and expected in lines[1]
    assert [turn.text for turn in conversation.speakers[0].turns] == ['ab', 'cd', 'ab', 'cd']


def test_a_model_that_cannot_take_the_conversation_over_is_refused_and_nothing_is_forgotten(talk, conversation, model):
    conversation.load = lambda name: Speaker(name, model, CharTokenizer('xy'), {})
    lines = talk('/system abc', 'ab', '/load other')
    assert 'other cannot take this conversation over' in lines[-1] and '/reset and /system -, then /load' in lines[-1]
    plain = conversation.speakers[0]
    assert plain.name == 'plain' and CHARS.decode(plain.ids()).startswith('abc\nab')
    assert talk('/reset', '/system -', '/load other')[-1].startswith('other: ')


@pytest.mark.parametrize('error', [MemoryError(), torch.OutOfMemoryError('CUDA'), RuntimeError('a kernel'), KeyError()])
@pytest.mark.parametrize('step', [1, 2, 4])
def test_after_an_answer_that_fails_the_conversation_goes_on_from_what_was_shown(talk, model, monkeypatch, error, step):
    update, calls = generate.KVCache.update, []

    def fails(cache, layer, k, v):
        calls.append(layer)
        if calls.count(1) == step and layer == 1:
            cache.keys.append(k)  # as if there was memory for the keys and not for the values
            raise error
        return update(cache, layer, k, v)
    monkeypatch.setattr(generate.KVCache, 'update', fails)
    shown, answer = talk('x y z', 'cd')
    shown, _, why = shown.partition(' [ended: ')
    assert str(error) in why and why.endswith(']') and len(shown) == step - 1
    text = f'x y z{shown}\ncd' if shown else 'cd'  # a turn without any answer is forgotten
    assert continued(model, text).partition('cd')[2].partition('\n')[0] == answer


def test_if_one_of_two_models_fails_the_other_still_answers(talk, conversation, monkeypatch):
    talk('/compare other')
    conversation.speakers[0].cache = cache = generate.KVCache(200)
    monkeypatch.setattr(cache, 'prepare', Mock(side_effect=RuntimeError('a kernel')))
    lines = talk('ab', 'cd')
    assert lines[0] == '[plain]' and 'RuntimeError: a kernel' in lines[1] and lines[2] == '[other]' and len(lines) == 8
    assert [[turn.text for turn in speaker.turns] for speaker in conversation.speakers] == [['ab', 'cd']] * 2


def test_a_replay_that_fails_forgets_nothing(speaker):
    speaker.begin('xyz')
    answer(speaker, 'ab')
    ids = speaker.ids()
    with pytest.raises(ValueError):
        speaker.replay('', [*speaker.turns, Turn('unknown: µ', [], '', [], False)])
    assert speaker.ids() == ids


def test_input_that_cannot_be_read_ends_the_chat(talk, conversation):
    assert len(talk('ab', OSError(errno.EIO, 'Input/output error'), 'cd')) == 1
    assert [turn.text for turn in conversation.speakers[0].turns] == ['ab']


def test_a_tilde_is_the_home_of_the_user(talk, conversation, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    conversation.load = Mock(side_effect=ValueError)
    lines = talk('/load ~/out', '/compare ~/out', 'ab', '/save ~/talk.txt')
    assert conversation.load.call_args_list == [call(f'{tmp_path}/out')] * 2
    assert lines[-1] == f'saved to {tmp_path}/talk.txt' and '> ab' in (tmp_path / 'talk.txt').read_text()


def test_a_conversation_that_cannot_be_saved_is_still_there(talk, conversation, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.symlink('nowhere', 'link')
    (tmp_path / 'mine.tmp').write_text('mine')
    for place, reason in (('mine', 'mine.tmp is already there'), ('no/x', 'No such file'),
                          ('link', 'already there'), ('.', 'already there'), ('x' * 300, 'too long'), ('a\0b', 'null')):
        assert reason in talk(f'/save {place}')[0]
    monkeypatch.setattr(files, 'sync', Mock(side_effect=OSError(errno.ENOSPC, 'No space left on device')))
    assert talk('ab', '/save talk.txt')[1] == (
        'talk.txt cannot be written (No space left on device); choose another name')
    assert sorted(os.listdir()) == ['link', 'mine.tmp'] and len(conversation.speakers[0].turns) == 1


def test_a_conversation_with_characters_that_utf_8_lacks_is_saved(talk, conversation, tmp_path):
    conversation.speakers[0].turns.append(Turn('a\udcff', [], 'b', [], False))
    talk(f'/save {tmp_path}/talk.txt')
    assert '> a\\udcff\nb\n' in (tmp_path / 'talk.txt').read_text()


def test_output_that_fails_ends_the_chat(talk, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', Mock(write=Mock(side_effect=OSError(errno.EIO, 'Input/output error'))))
    for line in ('ab', '/stats', '/load'):
        with pytest.raises(OSError, match='Input/output error'):
            talk(line)


def state(conversation):
    """What must not change when a command fails."""
    return (conversation.system, conversation.settings.copy(), [
        (speaker.name, speaker.ids(), [turn.answer for turn in speaker.turns]) for speaker in conversation.speakers])


class Panic(BaseException):
    """As libraries written in Rust raise it."""


@pytest.mark.parametrize('error', [Panic('at the disco'), SystemExit(2), EOFError('Ran out of input'), KeyError()])
def test_no_exception_of_a_command_or_an_answer_ends_the_chat(talk, conversation, monkeypatch, error):
    talk('ab', 'cd')
    before = state(conversation)
    conversation.load = Mock(side_effect=error)
    with monkeypatch.context() as failing:
        failing.setattr(generate, 'next_logits', Mock(side_effect=error))
        lines = talk('/load x', '/compare x', 'efg', '/retry', '/top')
    assert len(lines) == 5 and all(f'{type(error).__name__}: ' in line and '/save' in line for line in lines)
    assert state(conversation) == before
    text = CHARS.decode(conversation.speakers[0].ids()) + '\nx'  # the cache has not gone out of step
    assert talk('x')[0] == continued(conversation.speakers[0].model, text)[len(text):].partition('\n')[0]


def test_ctrl_c_during_a_command_leaves_the_conversation_as_it_was(talk, conversation, monkeypatch):
    talk('ab')
    before = state(conversation)
    conversation.load = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(conversation.speakers[0], 'replay', Mock(side_effect=KeyboardInterrupt))
    assert talk('/load x', '/compare x', '/system xyz', '/reset') == [''] * 4 and state(conversation) == before


def test_numbers_that_are_not_finite_leave_the_conversation_as_it_was(talk, conversation, model):
    talk('ab')
    before = state(conversation)
    weight = model.lm_head.weight
    kept = weight.data.clone()
    weight.data.fill_(float('nan'))
    assert 'not finite' in talk('cd')[0] and 'not finite' in talk('/top')[0]
    weight.data.copy_(kept)
    assert state(conversation) == before and len(talk('cd', '/undo')) == 2


@pytest.mark.parametrize('what', ['say', 'command'])
def test_ctrl_c_twice_does_not_end_the_chat(conversation, monkeypatch, capsys, what):
    """The second one comes while the first is dealt with."""
    monkeypatch.setattr('builtins.input', Mock(side_effect=['ab', '/stats', EOFError]))
    monkeypatch.setattr(conversation, what, Mock(side_effect=[KeyboardInterrupt, None]))
    original, pressed = print, []

    def interrupted(*args, **options):
        if not pressed:
            pressed.append(1)
            raise KeyboardInterrupt
        original(*args, **options)
    monkeypatch.setattr('builtins.print', interrupted)
    conversation.talk()
    assert pressed and getattr(conversation, what).call_count == 1


@pytest.mark.parametrize('line, key, value', [
    ('/temp 0.3', 'temperature', 0.3), ('/set temp 0.3', 'temperature', 0.3),
    ('/set temperature=0.3', 'temperature', 0.3), ('/temp ０．３', 'temperature', 0.3),
    ('/set parameter temperature 0.3', 'temperature', 0.3), ('/SET Temp 1', 'temperature', 1),
    ('/set num_predict 100', 'max_new_tokens', 100), ('/set n-predict 100', 'max_new_tokens', 100),
    ('/set top_k 40', 'top_k', 40), ('/top_k 40', 'top_k', 40), ('/topk ４０', 'top_k', 40),
    ('/set min_p 0.1', 'min_p', 0.1), ('/set seed 7', 'seed', 7),
    ('/set parameter repeat_penalty 1.5', 'repetition_penalty', 1.5)])
def test_a_setting_has_the_names_that_other_programs_give_it(talk, conversation, line, key, value):
    conversation.settings = dict.fromkeys(['temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty',
                                           'max_new_tokens', 'seed'], 0)
    assert talk(line, '/show')[0] == f'{key}: {conversation.settings[key]}' and conversation.settings[key] == value


@pytest.mark.parametrize('line', [
    '/temp nan', '/temp inf', '/temp -inf', '/temp -1', '/temp 1e400', "/temp ''", '/temp 0,3', '/temp 0x1',
    '/temp 1/2', '/temp 一', '/tokens 0', '/tokens 1e3', '/tokens 9' * 2, '/topk -1', '/topp 1.1', f'/topk {"9" * 5000}',
    f'/seed {2**64}', '/seed 2**64', '/set seed -1', '/temp 0.3\n/top', '/temp \x1b[A', '/temp \udcff'])
def test_a_value_that_is_no_such_number_is_one_clear_line(talk, conversation, line):
    conversation.settings |= {'top_k': 5, 'top_p': 1.0}
    before = state(conversation)
    told, = talk(line)
    assert ' number from ' in told and len(told) < 200 and state(conversation) == before


@pytest.mark.parametrize('line, hint', [
    ('/claer', '/clear?'), ('/byee', '/bye?'), ('/Tmp 1', '/temp?'), ('/num_predikt 3', '/numpredict?'), ('/', '/help'),
    ('//', '/help'), ('/home/me is a folder', '"""'), ('/set', 'top_k'), ('/set foo 1', 'top_k'),
    ('/set parameter', 'top_k'), ('/\x1b[2J', '\\x1b'), ('/load', '/load out-quickstart'), ('/save', 'name of a file')])
def test_what_is_no_command_is_answered_with_what_is_one(talk, line, hint):
    told, = talk(line)
    assert hint in told and '\x1b' not in told


@pytest.fixture
def locale(request, monkeypatch):
    """The locale of the environment. A test names it before `conversation`, which reads it once."""
    monkeypatch.setenv('LC_ALL', request.param)


@pytest.mark.parametrize('locale, language', [('C.UTF-8', 'en'), ('ko_KR.UTF-8', 'ko')], indirect=['locale'])
def test_help_lists_every_command_and_no_other_in_the_language_of_the_locale(locale, language, talk, conversation):
    told = chat_module.HELP[language].splitlines()
    listed = set(re.findall(r'/([a-z?]+)', '\n'.join(line[:18] for line in told if line[:3] == '  /')))
    known = {name[3:] for name in dir(conversation) if name.startswith('do_')} | set(chat_module.SETTINGS)
    assert known <= listed and {chat_module.command_name(word) for word in listed} == known
    assert set(chat_module.ALIASES.values()) <= known and talk('/?') == talk('/help') == told


def test_help_says_the_same_in_both_languages():
    """The same lines in the same order, each with the same commands, in columns of a terminal."""
    english, korean = (chat_module.HELP[language].splitlines() for language in ('en', 'ko'))
    for first, second in zip(english, korean, strict=True):
        assert first[:20] == second[:20] or first[0] != ' '
        assert sorted(re.findall(r'/[a-z?]+', first)) == sorted(re.findall(r'/[a-z?]+', second))
        assert re.search('[가-힣]', second) and console.width(second) <= max(map(console.width, english))
    assert {*chat_module.KEPT} == {*chat_module.HELP}


@pytest.mark.parametrize('locale', ['ko_KR.UTF-8'], indirect=True)
def test_help_is_korean_where_reading_in_korean_needs_another_locale(locale, talk, monkeypatch):
    monkeypatch.setenv('LC_ALL', 'C.UTF-8')  # as terminal.use_utf8 does where the machine lacks the locale
    assert talk('/help') == chat_module.HELP['ko'].splitlines()


@pytest.mark.parametrize('word', ['quit', ' exit ', '/bye', '/exit', '/quit', '/Bye'])
def test_words_that_leave(talk, word):
    assert talk(word, '/stats') == []


def test_clear_starts_over_and_keeps_the_system_text(talk, conversation):
    talk('/set system "xyz"', 'ab', '/clear')
    assert conversation.system == 'xyz' and CHARS.decode(conversation.speakers[0].ids()) == 'xyz'
    talk('/set system ""')
    assert conversation.system == '' and conversation.speakers[0].ids() == []


def test_the_text_of_several_lines(talk, conversation):
    talk('"""ab', 'cd""" ', '"""x y"""')
    assert [turn.text for turn in conversation.speakers[0].turns] == ['ab\ncd', 'x y']
    assert talk('"""ab', 'cd') == ['the text has no """ at its end, and was not sent']
    assert len(conversation.speakers[0].turns) == 2


@pytest.mark.parametrize('word', ['/system', '/set system', '/SET system='])
def test_the_text_before_a_conversation_may_have_several_lines(talk, conversation, word):
    for lines, text in ((['"""ab', 'cd""" '], 'ab\ncd'), (['"""', 'xyz', '"""'], 'xyz'), (['"""ab'], 'xyz'),
                        (['"""x y"""'], 'x y'), (['"""', '"""'], '')):
        told = talk(f'{word} {lines[0]}', *lines[1:])
        assert len(told) == 1 and conversation.system == text and not conversation.speakers[0].turns


def test_of_two_models_the_one_that_cannot_take_a_text_is_named(talk, conversation, model):
    conversation.load = lambda name: Speaker(name, model, CharTokenizer('ab\n'), {})
    talk('/compare other')
    told = talk('az', '/system az')
    assert len(told) == 2 and all(line.startswith("other: the model does not know the characters 'z'") for line in told)
    assert conversation.system == '' and not any(speaker.turns for speaker in conversation.speakers)


def test_escapes_of_a_model_are_shown_and_saved_as_they_are(talk, conversation, monkeypatch, tmp_path):
    answer = 'a\x1b]0;title\x07\x9b2J\tb\r\nc\rd'
    pieces = (piece for piece in [*answer[:-5], '\r\n', 'c\rd'])  # a TextStream keeps \r\n together
    monkeypatch.setattr(conversation.speakers[0], 'answer', lambda *args, **options: pieces)
    assert talk('ab') == ['a\\x1b]0;title\\x07\\x9b2J\tb', 'c\\rd']
    conversation.speakers[0].turns[0].answer = answer
    talk(f'/save {tmp_path}/talk.txt', f'/save {tmp_path}/talk.json')
    assert f'> ab\n{answer}\n'.encode() in (tmp_path / 'talk.txt').read_bytes()
    assert transcript.read(tmp_path / 'talk.json')[1][0].answer == answer


def test_a_saved_conversation_can_be_continued(talk, conversation, model, tmp_path):
    talk('/system xyz', 'ab', 'cd\n\n', f'/save {tmp_path}/talk.json')
    other = Chat(lambda name: Speaker(name, model, CHARS, {}), 'other', 8, ['\n'], 1, temperature=0)
    other.command(f'/load {tmp_path}/talk.json')
    assert state(other)[2][0][1:] == state(conversation)[2][0][1:] and other.system == 'xyz'


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{}', b'null', b'{"system": "", "conversations": []}',
                                     b'{"system": 1, "conversations": [{"turns": []}]}', b'\xff\xfe', b'[' * 10**5,
                                     b'{"system": "", "conversations": [{"turns": [{"said": 1}]}]}',
                                     b'{"system": "", "conversations": [{"turns": [["said", "answer"]]}]}'])
def test_a_file_that_is_no_saved_conversation_is_refused(talk, conversation, tmp_path, content):
    talk('ab')
    before = state(conversation)
    (tmp_path / 'x.json').write_bytes(content)
    assert talk(f'/load {tmp_path}/x.json') == [f'{tmp_path}/x.json is not a conversation that /save has written']
    assert state(conversation) == before


def test_a_conversation_longer_than_the_context_says_once_what_is_seen(conversation, capsys):
    for line in ('ab', 'x' * 190, 'cd', 'ef'):
        conversation.say(line)
    told = capsys.readouterr().err
    assert re.fullmatch('the conversation has [0-9]+ tokens; plain sees the last 200 of them\n', told)
    conversation.command('/reset')
    conversation.say('x' * 190)
    assert capsys.readouterr().err == ''


def test_a_model_compared_with_itself_answers_the_same_past_the_context(talk, conversation):
    conversation.stops, conversation.settings['temperature'] = [], 1.0
    talk('/tokens 70', 'ab', 'cd', 'ef', '/compare same', 'gh', 'y')
    one, other = ([turn.answer for turn in speaker.turns] for speaker in conversation.speakers)
    assert one == other and len(one) == 5 and len(one[0]) == 70


def test_a_conversation_moves_to_another_vocabulary_and_back(talk, conversation, model):
    other = CharTokenizer([*CHARS.chars[::-1], '한'])
    torch.manual_seed(1)
    larger = GPT(GPTConfig(block_size=20, vocab_size=other.vocab_size, n_layer=1, n_head=1, n_embd=8)).eval()
    speakers = {'larger': Speaker('larger', larger, other, {}), 'plain': conversation.speakers[0]}
    conversation.load = speakers.get
    talk('/system xyz', 'ab', 'cd')
    ids = conversation.speakers[0].ids()
    talk('/load larger')
    assert other.decode(conversation.speakers[0].ids()) == CHARS.decode(ids)
    talk('/load plain')
    assert conversation.speakers[0].ids() == ids
    talk('/load larger', '한')
    before = state(conversation)
    assert "'한'" in talk('/load plain')[0] and state(conversation) == before


def test_hangul_in_pieces_is_understood(conversation, model, capsys):
    """As macOS writes it in the names of files. A line says so, once in a chat."""
    conversation.speakers = [Speaker('one', model, CharTokenizer('한글'), {})]
    said = unicodedata.normalize('NFD', '한글')
    conversation.say('한글')
    assert capsys.readouterr().err == ''
    conversation.say(said)
    conversation.command('/reset')
    conversation.say(said)
    assert conversation.speakers[0].turns[0].text_ids == [0, 1]
    assert capsys.readouterr().err == (
        'what you typed has decomposed characters (NFD): taken in NFC, which suits this vocabulary better\n')


def test_the_same_vocabulary_takes_the_ids_over_as_they_are(model):
    """Of a text a model may choose other tokens than the tokenizer would."""
    bpe = BPETokenizer(train_bpe(['the cat sees a dog'], 270))
    ids = [bpe.encode(char)[0] for char in 'the']
    assert bpe.encode('the') != ids
    turn, one = Turn('a', [], 'the', ids, False), Speaker('one', model, bpe, {})
    assert one.replay('', [turn], BPETokenizer(bpe.content)).turns[0].answer_ids == ids
    assert one.replay('', [turn]).turns[0].answer_ids == bpe.encode('the')


def test_an_error_in_one_of_two_models_changes_neither(talk, conversation, monkeypatch):
    talk('/compare other', '/system xyz', 'ab')
    before = state(conversation)
    monkeypatch.setattr(conversation.speakers[1], 'encode_given', Mock(side_effect=MemoryError))
    assert 'out of memory' in talk('/system abc')[0] and 'out of memory' in talk('cd')[0]
    monkeypatch.undo()
    assert state(conversation) == before


def test_a_chat_has_a_new_seed_unless_one_is_given_and_can_be_repeated(run, trained, tmp_path):
    def chat(*args):
        done = ok(run('sample.py', '--chat=True', f'--out_dir={trained}', '--device=cpu', '--max_new_tokens=9', *args,
                      stdin='the cat\na dog\n'))
        return done.stdout, re.findall('--seed=([0-9]+) ', done.stderr)
    first, seeds = chat()
    second, others = chat()
    assert len(seeds) == len(others) == 1 and seeds != others and first != second
    assert chat(f'--seed={seeds[0]}') == (first, [])
    (tmp_path / 'mine.py').write_text('seed = 1337')  # the default, but given
    assert chat('--seed=1337') == chat('mine.py') and chat('mine.py')[1] == []
