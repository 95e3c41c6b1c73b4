"""evaluate.py as a user runs it, on a toy model: its figures are the model's own, and no question is asked twice."""
import glob
import json
import math
import os
import random
import re
import shutil
import unicodedata

import numpy as np
import pytest
import torch

from common import dataset, tasks
from common.evaluating import answers, texts
from common.tokenizer import BPETokenizer, from_meta, train_bpe
from conftest import make_dataset, read_metrics
from model import GPT, GPTConfig, load_weights
from running import ROOT, hook, ok, python


WORDS = 'the cat a dog one bird my fish that horse sees likes follows hears'.split()


@pytest.fixture
def evaluate(run, trained):
    """evaluate('--text=FILE', ...): the toy run, evaluated."""
    return lambda *args, **env: run('evaluate.py', f'--out_dir={trained}', '--device=cpu', *args, **env)


def objects(done):
    """What was printed with --json=True, a list of dicts, without the only figure that differs from run to run."""
    found = [json.loads(line) for line in ok(done).stdout.splitlines()]
    assert all(one.pop('seconds') > 0 for one in found if 'task' in one)
    return found


def losses(model, ids, overlap):
    """The loss in nats of each of ids (T,) after the first; `overlap` ids stand before those that a window scores."""
    found, size = [], model.config.block_size
    while len(found) < len(ids) - 1:
        begin = max(0, len(found) + 1 - overlap) if found else 0
        window = torch.as_tensor(ids[begin:begin + size + 1])
        with torch.no_grad():
            logits = model(window[None, :-1], window[None, 1:])[0][0]
        every = torch.nn.functional.cross_entropy(logits, window[1:], reduction='none').tolist()
        found += every[len(found) - begin:]
    return found


# texts

@pytest.fixture(scope='module')
def korean(tmp_path_factory):
    """The folder of a random model with characters of one and of three bytes."""
    torch.manual_seed(0)
    folder, chars = tmp_path_factory.mktemp('korean'), list('\n a가나다')
    shape = dict(block_size=8, vocab_size=len(chars), n_layer=1, n_head=2, n_embd=16, modern=True)
    meta = {'tokenizer': 'char', 'vocab_size': len(chars), 'chars': chars}
    torch.save(dict(model=GPT(GPTConfig(**shape)).state_dict(), model_args=shape, config={}, meta=meta, iter_num=7),
               folder / 'ckpt.pt')
    return str(folder)


def test_bits_per_byte_of_a_text_are_the_models(run, korean, tmp_path):
    text = '가나 다a\n' * 9
    (tmp_path / 'my.txt').write_text(text)
    model, checkpoint = load_weights(korean)
    ids = from_meta(checkpoint['meta']).encode('\n' + text)
    each = losses(model.eval(), ids, overlap=4)
    found, = objects(run('evaluate.py', f'--out_dir={korean}', '--text=my.txt', '--device=cpu', '--json=True'))
    assert found['loss'] == pytest.approx(sum(each) / 54, rel=1e-5) and found['tokens'] == found['characters'] == 54
    assert found['bytes'] == len(text.encode()) == 108
    assert found['bits_per_byte'] == pytest.approx(sum(each) / math.log(2) / 108, rel=1e-5)
    assert found['perplexity'] == pytest.approx(math.exp(sum(each) / 54), rel=1e-5)
    about = {'model': korean, 'iter': 7, 'dtype': 'float32', 'text': 'my.txt'}
    assert found.keys() == {*about, 'tokens', 'characters', 'bytes', 'loss', 'perplexity', 'accuracy', 'bits_per_byte'}
    assert all(found[key] == value for key, value in about.items())
    printed = ok(run('evaluate.py', f'--out_dir={korean}', '--text=my.txt', '--device=cpu')).stdout
    assert printed == (f'my.txt: {found["bits_per_byte"]:.4f} bits per byte, loss {found["loss"]:.4f}, perplexity '
                       f'{found["perplexity"]:.2f}, accuracy {found["accuracy"]:.1%}; 54 tokens\n')
    half, = objects(run('evaluate.py', f'--out_dir={korean}', '--text=my.txt', '--device=cpu', '--json=True',
                        '--fraction=0.5'))
    assert half['characters'] == 27 and half['loss'] == pytest.approx(sum(each[:27]) / 27, rel=1e-5)


def test_a_decomposed_text_is_scored_as_the_composed_one_that_the_vocabulary_was_learned_from(capsys):
    composed = '고양이는 물을 마신다.'
    tokenizer = BPETokenizer(train_bpe([composed] * 9, 300))
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=320, n_layer=1, n_head=1, n_embd=8)).eval()
    same = [texts.score_text(model, tokenizer, unicodedata.normalize(form, composed), {'text': 'a'})[1] for form in ('NFC', 'NFD')]
    assert same[0] == same[1] and capsys.readouterr().err.startswith('the text has decomposed characters (NFD): taken')


def test_the_end_of_a_text_is_predicted_but_is_no_byte_of_it():
    tokenizer = BPETokenizer(train_bpe(['the cat sees one bird.'] * 9, 300))
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=320, n_layer=1, n_head=1, n_embd=8)).eval()
    line, found = texts.score_text(model, tokenizer, 'the cat.<|endoftext|>한', {'text': 'my.txt'})
    ids = [tokenizer.end_id, *tokenizer.encode('the cat.<|endoftext|>한')]
    logits = model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))[0][0, :, :tokenizer.vocab_size]
    total = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction='sum').item()
    assert found['bytes'] == 11 and found['bits_per_byte'] == pytest.approx(total / math.log(2) / 11, rel=1e-5)
    assert found['accuracy'] == pytest.approx((logits.argmax(dim=-1) == torch.tensor(ids[1:])).float().mean().item())
    line, found = texts.score_text(model, tokenizer, '<|endoftext|>', {'text': 'my.txt'})
    assert found['loss'] > 0 and found['bits_per_byte'] is found['bytes'] is None and 'bits per byte not known' in line


# datasets

def test_the_validation_data_of_a_run_is_scored_as_the_run_did_it(train, run, tmp_path):
    ok(train('--out_dir=out', '--eval_iters=0', '--max_iters=20'))
    found, = objects(run('evaluate.py', '--device=cpu', '--json=True'))
    logged = next(line for line in read_metrics(tmp_path / 'out')[1] if line['iter'] == found['iter'])
    for key, theirs in (('loss', 'val_loss'), ('accuracy', 'val_acc'), ('bits_per_byte', 'bits_per_byte')):
        assert found[key] == pytest.approx(logged[theirs], rel=1e-5), key
    assert found['dataset'] == 'toy0'


def test_a_dataset_of_the_same_vocabulary_is_read_in_windows_that_do_not_overlap(evaluate, trained, corpus_dir):
    ids = np.fromfile(os.path.join(corpus_dir, 'val.bin'), '<u2').astype(np.int64)
    for fraction in (1.0, 0.3):
        count = math.ceil(fraction * len(ids))
        each = losses(GPT.from_checkpoint(trained).eval(), ids[:count], overlap=1)
        found, = objects(evaluate(f'--dataset={corpus_dir}', f'--fraction={fraction}', '--json=True'))
        assert found['tokens'] == len(each) == count - 1
        assert found['loss'] == pytest.approx(sum(each) / len(each), rel=1e-5)
        per_token = dataset.bytes_per_token(dataset.read_meta(corpus_dir), 'val')
        assert found['bits_per_byte'] == pytest.approx(found['loss'] / math.log(2) / per_token)


def test_bits_per_byte_that_nobody_can_know_are_null(evaluate, corpus_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / 'old')
    meta = json.loads((tmp_path / 'old' / 'meta.json').read_text())
    (tmp_path / 'old' / 'meta.json').write_text(json.dumps({key: meta[key] for key in meta if key != 'scored'}))
    found, = objects(evaluate(f'--dataset={tmp_path}/old', '--json=True'))
    assert found['bits_per_byte'] is found['bytes'] is None and found['loss'] > 0
    assert ok(evaluate(f'--dataset={tmp_path}/old')).stdout.startswith('old: bits per byte not known, loss ')


def test_a_dataset_in_another_vocabulary_is_scored_as_its_text(evaluate, trained, corpus_dir, tmp_path):
    mine = from_meta(dataset.read_meta(corpus_dir))
    (tmp_path / 'other').mkdir()
    folder = make_dataset(tmp_path / 'other', 'the dog sees a bird.\n' * 100)
    meta = dataset.read_meta(folder)
    text = from_meta(meta).decode(np.fromfile(os.path.join(folder, 'val.bin'), '<u2').tolist())
    done = evaluate(f'--dataset={folder}', '--json=True')
    found, = objects(done)
    ids = np.array([mine.start_id, *mine.encode(text)])
    each = np.array(losses(GPT.from_checkpoint(trained).eval(), ids, overlap=1))  # as in its own vocabulary
    assert found['dataset'] == 'other' and found['loss'] == pytest.approx(each.mean(), rel=1e-5)
    assert 'other is in another vocabulary (char): decoded, and encoded again' in done.stderr
    assert found['characters'] == found['bytes'] == found['tokens'] == len(text)
    (tmp_path / 'strange').mkdir()
    done = evaluate(f'--dataset={make_dataset(tmp_path / "strange", "the dog sees a Zebra. " * 50)}')
    assert done.returncode == 2 and 'does not know the characters' in done.stderr and 'Traceback' not in done.stderr


def test_the_ends_of_documents_become_line_ends_in_another_vocabulary(evaluate, trained, corpus_dir, tmp_path):
    rng = random.Random(0)
    rows = [dict(text=' '.join(rng.choice(WORDS) for _ in range(6))) for _ in range(200)]
    (tmp_path / 'mine.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    script = os.path.join(ROOT, 'data', 'text', 'prepare.py')
    ok(python(script, '--input=mine.jsonl', '--out=bpe', '--vocab_size=280', cwd=tmp_path))
    meta = dataset.read_meta(str(tmp_path / 'bpe'))
    text = from_meta(meta).decode(np.fromfile(tmp_path / 'bpe' / 'val.bin', meta['dtype']).tolist())
    assert '<|endoftext|>' in text
    found, = objects(evaluate(f'--dataset={tmp_path}/bpe', '--json=True'))
    mine, text = from_meta(dataset.read_meta(corpus_dir)), text.replace('<|endoftext|>', '\n')
    ids = np.array([mine.start_id, *mine.encode(text)])
    each = np.array(losses(GPT.from_checkpoint(trained).eval(), ids, overlap=1))
    assert found['loss'] == pytest.approx(each.mean(), rel=1e-5) and found['bytes'] == len(text)


def test_a_mask_is_of_no_use_in_another_vocabulary(evaluate, tmp_path):
    (tmp_path / 'other').mkdir()
    folder = make_dataset(tmp_path / 'other', 'the dog sees a bird.\n' * 100)
    np.ones(os.path.getsize(os.path.join(folder, 'val.bin')) // 2, bool).tofile(os.path.join(folder, 'val_mask.bin'))
    done = evaluate(f'--dataset={folder}')
    assert done.returncode == 2 and 'which its mask of what counts is for' in done.stderr


def test_what_a_mask_excludes_does_not_count(evaluate, trained, corpus_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / 'masked')
    ids = np.fromfile(os.path.join(corpus_dir, 'val.bin'), '<u2').astype(np.int64)
    mask = np.random.default_rng(0).random(len(ids)) < 0.3
    mask[:100] = False
    mask.tofile(tmp_path / 'masked' / 'val_mask.bin')
    each = np.array(losses(GPT.from_checkpoint(trained).eval(), ids, overlap=1))[mask[1:]]
    found, = objects(evaluate(f'--dataset={tmp_path}/masked', '--json=True'))
    assert found['tokens'] == len(each) and found['loss'] == pytest.approx(each.mean(), rel=1e-5)
    done = evaluate(f'--dataset={tmp_path}/masked', f'--fraction={100 / len(ids)}')
    assert done.returncode == 2 and 'nothing counts in the first 100 tokens of masked; try a larger ' in done.stderr


# questions

@pytest.fixture
def questions(tmp_path):
    """Questions that the toy model can read, a list of rows, in mine.jsonl; the last ones do not fit its context."""
    rng, rows = random.Random(0), []
    for i in range(40):
        query = ' '.join(rng.choice(WORDS) for _ in range(1 + i // 36 * 3))
        rows.append(dict(query=query, choices=[rng.choice(WORDS) for _ in range(2 + i % 2)], gold=i % 2))
    rows[0] = dict(query='the cat sees', choices=['that', 'my'], gold=0)  # just fits: the last of 17 predicts nothing
    (tmp_path / 'mine.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return rows


def log_probabilities(trained, contexts_and_choices):
    """For each choice of each question its log-probability, from the last 16 characters before each of its own."""
    model, checkpoint = load_weights(trained)
    tokenizer, found = from_meta(checkpoint['meta']), []
    for context, choices in contexts_and_choices:
        found.append([])
        for choice in choices:
            ids = tokenizer.encode(f'{context} {choice}')[-17:]
            with torch.no_grad():
                logits = model.eval()(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))[0][0]
            logprobs = -torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction='none')
            found[-1].append(logprobs[-len(choice) - 1:].sum().item())
    return found


@pytest.mark.parametrize('shots', [0, 2])
def test_accuracy_is_that_of_the_models_log_probabilities(evaluate, questions, trained, tmp_path, shots):
    found, = objects(evaluate('--tasks=mine.jsonl', f'--shots={shots}', '--json=True'))
    asked = tasks.load(str(tmp_path / 'mine.jsonl'), shots)
    assert [question.context.count('\n\n') for question in asked] == [shots] * 40
    likely = log_probabilities(trained, [(question.context, question.choices) for question in asked])
    right = [np.argmax(values) == row['gold'] for values, row in zip(likely, questions)]
    norm = [np.argmax([value / len(choice) for value, choice in zip(values, row['choices'])]) == row['gold']
            for values, row in zip(likely, questions)]
    for key, values in (('acc', right), ('acc_norm', norm)):
        assert found[key] == pytest.approx(np.mean(values))
        assert found[f'{key}_stderr'] == pytest.approx(np.std(values, ddof=1) / math.sqrt(40))
    too_long = [len(f'{question.context} {max(question.choices, key=len)}') > 17 for question in asked]
    assert found['too_long'] == sum(too_long) > 0 and found['unknown_characters'] == 0
    assert found['task'] == 'mine' and found['questions'] == 40 and found['shots'] == shots
    printed = ok(evaluate('--tasks=mine.jsonl', f'--shots={shots}')).stdout
    assert printed == (f'mine: accuracy {found["acc"]:.2%} ± {found["acc_stderr"]:.2%}, by character '
                       f'{found["acc_norm"]:.2%} ± {found["acc_norm_stderr"]:.2%}, 40 questions'
                       + ', each after 2 solved' * (shots > 0) +
                       f'; {sum(too_long)} longer than the context, without their beginning\n')


def test_a_fraction_of_the_questions_is_asked_and_files_may_stand_in_for_others(evaluate, questions, tmp_path):
    (tmp_path / 'some.jsonl').write_text('\n'.join(json.dumps(row) for row in questions[::4]))
    quarter, = objects(evaluate('--tasks=mine.jsonl', '--fraction=0.25', '--json=True'))
    alone, instead = objects(evaluate('--tasks=some.jsonl', '--json=True')) + objects(
        evaluate('--tasks=hellaswag', '--input=some.jsonl', '--json=True'))
    assert (quarter['task'], alone['task'], instead['task']) == ('mine', 'some', 'hellaswag')
    for one in (quarter, alone, instead):
        del one['task']
        assert one == quarter and one['questions'] == 10


def test_questions_with_unknown_characters_are_left_out_and_said(evaluate, tmp_path):
    rows = [dict(query='the cat', choices=['sees', 'likes'], gold=i % 2) for i in range(3)]
    strange = dict(query='the cat', choices=['sees', 'ZEBRA'], gold=0)
    (tmp_path / 'mine.jsonl').write_text('\n'.join(map(json.dumps, [strange, *rows, strange])))
    found, = objects(evaluate('--tasks=mine.jsonl', '--json=True'))
    assert found['questions'] == 3 and found['unknown_characters'] == 2
    assert '3 questions; 2 left out, with characters that the vocabulary lacks\n' in ok(
        evaluate('--tasks=mine.jsonl')).stdout
    (tmp_path / 'mine.jsonl').write_text(json.dumps(strange))
    done = evaluate('--tasks=mine.jsonl')
    assert done.returncode == 2 and 'each question has characters that are not in the vocabulary' in done.stderr


def test_json_has_one_object_per_result_and_nothing_else(evaluate, questions, corpus_dir, tmp_path):
    (tmp_path / 'my.txt').write_text('the cat sees my fish.')
    shutil.copy(tmp_path / 'mine.jsonl', tmp_path / 'words.jsonl')
    done = evaluate('--tasks=mine.jsonl, words.jsonl', '--text=my.txt', f'--dataset={corpus_dir}', '--json=True')
    found = objects(done)
    assert [one.get('text') or one.get('dataset') or one['task'] for one in found] == [
        'my.txt', 'toy0', 'mine', 'words'] and done.stdout.count('\n') == 4
    assert {key: found[2][key] for key in found[2] if key != 'task'} == {
        key: found[3][key] for key in found[3] if key != 'task'}


# stopped and gone on with

WATCHED = '''
os.environ['XDG_CACHE_HOME'] = {cache!r}
import json
from common import scoring
original, scoring.MOST_TOKENS, done = scoring.score_batch, 30, []
def watched(model, contexts, endings, vocab_size):
    if len(done) == {limit}:
        {end}
    found = original(model, contexts, endings, vocab_size)
    done.append(contexts)
    with open('asked', 'a') as f:
        f.writelines(json.dumps(one) + chr(10) for one in zip(contexts, endings))
    return found
scoring.score_batch = watched
'''


@pytest.mark.parametrize('end, code', [('raise KeyboardInterrupt', 130), ('die()', -9)])
def test_what_was_stopped_goes_on_from_the_last_answers(trained, tmp_path, end, code):
    rng = random.Random(1)
    rows = [dict(query=f'{rng.choice(WORDS)} {rng.choice("abcdefgh")}'[-9:], choices=rng.sample(WORDS, 2), gold=i % 2)
            for i in range(60)]
    (tmp_path / 'mine.jsonl').write_text('\n'.join(map(json.dumps, rows)))

    def run(cache, limit=-1):
        watched = WATCHED.format(cache=str(tmp_path / cache), limit=limit, end=end)
        return hook(watched, 'evaluate.py', f'--out_dir={trained}', '--device=cpu', '--tasks=mine.jsonl', '--json=True',
                    cwd=tmp_path)

    def asked():
        path = tmp_path / 'asked'
        lines = path.read_text().splitlines()
        path.unlink()
        return sorted(lines)

    whole, = objects(run('whole'))
    every = asked()
    assert len(every) == 60
    done = run('stopped', limit=7)
    assert done.returncode == code and done.stdout == '' and 'Traceback' not in done.stderr
    if code == 130:
        assert 'the same command goes on from the last answer' in done.stderr
    kept, = glob.glob(f'{tmp_path}/stopped/nanogpt/answers/*.jsonl')
    with open(kept, 'a') as f:
        f.write('[3, [[-1.2')  # what a power cut leaves
    first = (tmp_path / 'asked').read_text().count('\n')
    assert 0 < first < 60
    done = run('stopped')
    assert objects(done) == [whole] and asked() == every
    assert f'mine: {first} of 60 questions were answered before it was stopped' in done.stderr
    assert os.listdir(os.path.dirname(kept)) == [], 'of what is finished nothing is left'


def test_the_answers_of_other_models_or_questions_are_not_taken(trained, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    known = {0: ([1, 2], [[3], [4]]), 7: ([1], [[2], [3, 4]])}
    changes = {'weights': lambda model: model.transformer.ln_f.weight.data[-1:].mul_(1.001),
               'shape': lambda model: setattr(model.config, 'softcap', 3.0),
               'nothing': lambda model: None}
    paths = {}
    for change, act in changes.items():
        model, _ = load_weights(trained)
        act(model)
        paths[change] = answers.place(model, known, 'float32')
    assert paths['nothing'] == answers.place(load_weights(trained)[0], dict(known), 'float32')
    paths['question'] = answers.place(model, {**known, 7: ([1], [[2], [3, 5]])}, 'float32')
    paths['dtype'] = answers.place(model, known, 'bfloat16')
    paths['number'] = answers.place(model, {0: known[0], 8: known[7]}, 'float32')
    assert len(set(paths.values())) == 6 and all(os.path.isfile(path) for path in paths.values())


def test_without_a_place_for_answers_the_questions_are_asked_all_the_same(evaluate, trained, questions, tmp_path):
    expected = objects(evaluate('--tasks=mine.jsonl', '--json=True'))
    (tmp_path / 'file').write_text('')
    for cache in ('', f'{tmp_path}/file'):
        code = f"os.environ.update(XDG_CACHE_HOME={cache!r}, HOME='')"
        done = hook(code, 'evaluate.py', f'--out_dir={trained}', '--device=cpu', '--tasks=mine.jsonl', '--json=True',
                    cwd=tmp_path)
        assert objects(done) == expected and ('if this is stopped, it will begin anew' in done.stderr) == bool(cache)


# mistakes

@pytest.mark.parametrize('args, expected', [
    (['--tasks=helaswag'], "there is no task 'helaswag'; it is one of hellaswag, arc_easy"),
    (['--tasks=gone.jsonl'], 'gone.jsonl cannot be read as questions (FileNotFoundError'),
    (['--tasks=bad.jsonl'], 'bad.jsonl, question 1: it has none of endings, answerKey'),
    (['--input=mine.jsonl'], "input='mine.jsonl' is the file of one task; name it"),
    (['--tasks=piqa,hellaswag', '--input=mine.jsonl'], "input='mine.jsonl' is the file of one task; name it"),
    (['--tasks=mine.jsonl', '--fraction=0'], 'fraction=0.0 is not above 0 and at most 1'),
    (['--tasks=mine.jsonl', '--fraction=1.5'], 'fraction=1.5 is not above 0 and at most 1'),
    (['--shots=2'], 'shots=2 needs questions, as in --tasks=arc_easy'),
    (['--tasks=mine.jsonl', '--shots=-1'], 'shots=-1'),
    (['--tasks=mine.jsonl', '--shots=40'], 'shots=40, but there are only 39 examples'),
    (['--tasks=mine.jsonl', '--examples=mine.jsonl'], "examples='mine.jsonl' needs --shots=N"),
    (['--text=gone.txt'], "text='FILE:gone.txt' cannot be read: No such file or directory"),
    (['--text=empty.txt'], 'there is no text to score'), (['--text=strange.txt'], 'does not know the characters'),
    (['--dataset=gone'], "dataset 'gone' has no train.bin and no val.bin"),
    (['--out_dir=gone'], "no folder 'gone' with a trained model here; --out_dir=FOLDER names one"),
    (['--out_dir=gpt2'], "no folder 'gpt2' with a trained model here; did you mean --init_from=gpt2?"),
    (['--out_dir=empty'], 'no checkpoint in empty'), (['--init_from=gone.pt', '--text=my.txt'], 'gone.pt'),
    (['--device=tpu'], "tpu"), (['--dtype=int3'], "int3"), (['--task=piqa'], 'task')])
def test_a_mistake_is_one_line_and_nothing_is_written(evaluate, questions, tmp_path, args, expected):
    (tmp_path / 'empty').mkdir()
    for name, text in (('my.txt', 'a cat'), ('empty.txt', ''), ('strange.txt', 'Z'), ('bad.jsonl', '{"a": 1}')):
        (tmp_path / name).write_text(text)
    before = sorted(os.listdir(tmp_path))
    done = evaluate(*args)
    assert done.returncode == 2 and done.stdout == '' and expected in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if 'the run has come to iteration' not in line]
    assert len(said) == 1 or args == ['--task=piqa']  # whose second line is what it may have meant
    assert sorted(os.listdir(tmp_path)) == before


def test_weights_that_do_not_say_what_they_were_trained_on_need_something_to_score(run, korean):
    done = run('evaluate.py', f'--out_dir={korean}', '--device=cpu')
    assert done.returncode == 2 and re.search('does not say what it was trained on; say what to score: --text=FILE, '
                                              '--dataset=NAME or --tasks=hellaswag\n$', done.stderr)


@pytest.mark.parametrize('error', ['torch.OutOfMemoryError("CUDA out of memory")', 'MemoryError()'])
def test_a_lack_of_memory_is_told_with_what_to_try(trained, questions, tmp_path, error):
    code = f'from common import scoring\ndef fails(*args):\n    raise {error}\nscoring.score_batch = fails'
    done = hook(code, 'evaluate.py', f'--out_dir={trained}', '--device=cpu', '--tasks=mine.jsonl', cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == '' and 'Traceback' not in done.stderr
    assert 'evaluate.py: out of memory: try --dtype=bfloat16, or --device=cpu (' in done.stderr
