"""
Published benchmarks of language models, and questions of one's own: read from the files that their authors publish,
worded as in EleutherAI's lm_eval, so that the figures are the same. It knows no model.
https://github.com/EleutherAI/lm-evaluation-harness, version 0.4
"""
import hashlib
import json
import math
import os
import random
import re
import sys
import zipfile
import zlib
from dataclasses import dataclass

from common import console, files
from common.download import download

ARC = 'https://huggingface.co/datasets/allenai/ai2_arc/resolve/210d026faf9955653af8916fad021475a3f00453/ARC-'
PIQA = ('https://storage.googleapis.com/ai2-mosaic/public/physicaliqa/physicaliqa-train-dev.zip',
        '54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd', 'dev')
# name: (the file with the questions, the one with examples for few-shot questions or None: the same), each with its
# address, its sha256, and which part of it
TASKS = {
    'hellaswag': (  # Zellers et al. 2019
        ('https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl',
         '0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588', ''), None),
    'arc_easy': (  # Clark et al. 2018
        (f'{ARC}Easy/test-00000-of-00001.parquet',
         '4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177', ''),
        (f'{ARC}Easy/train-00000-of-00001.parquet',
         'b315db8a4be597dc7daa50a4e70d48dd7c990c32085629e6ccd8c926beaa80b5', '')),
    'arc_challenge': (
        (f'{ARC}Challenge/test-00000-of-00001.parquet',
         '62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9', ''),
        (f'{ARC}Challenge/train-00000-of-00001.parquet',
         'e488c1587ffdcfc8443f916c53488a95cd471c5790e0746c6bfe4cecf20962cb', '')),
    'piqa': (PIQA, (*PIQA[:2], 'train')),  # Bisk et al. 2019
    'lambada': (  # Paperno et al. 2016, in OpenAI's version
        ('https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl',
         '4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226', ''), None)}
SUFFIXES = '.jsonl', '.parquet', '.zip'
FEW_SHOT_SEED = 1234  # lm_eval's
# they are asked the validation questions, as those of the test have no answers: there lm_eval draws one example more
# than it takes, although the question itself cannot be among them
WITHOUT_TEST = 'hellaswag', 'piqa'


@dataclass
class Question:
    """What stands before the choices, the choices without the space between, and which of them is right."""
    context: str
    choices: list
    gold: int = 0


def hellaswag(row):
    def clean(text):
        return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')
    context = f'{row["activity_label"]}: {row["ctx_a"]} {row["ctx_b"].capitalize()}'
    return Question(clean(context), [clean(ending) for ending in row['endings']], int(row['label']))


def arc(row):
    question, choices = row['question'], row.get('choices')
    if choices is None:  # as in AI2's own files
        question, choices = question['stem'], {key: [choice[key] for choice in question['choices']]
                                               for key in ('text', 'label')}
    return Question(f'Question: {question}\nAnswer:', list(choices['text']),
                    list(choices['label']).index(row['answerKey']))


def piqa(row):
    return Question(f'Question: {row["goal"]}\nAnswer:', [row['sol1'], row['sol2']], int(row['label']))


def lambada(row):
    context, _, word = row['text'].rpartition(' ')
    return Question(context, [word])


def own(row):
    if not isinstance(row['choices'], list) or not isinstance(row['gold'], int):
        raise ValueError('its choices are no list, or gold is no whole number')
    return Question(row['query'], row['choices'], row['gold'])


# the key by which a row is recognised
READERS = {'endings': hellaswag, 'answerKey': arc, 'goal': piqa, 'query': own, 'text': lambada}


def to_question(row):
    """A row of any of these files as a Question. ValueError if it is none."""
    reader = next((reader for key, reader in READERS.items() if isinstance(row, dict) and key in row), None)
    if reader is None:
        raise ValueError(f'it has none of {", ".join(READERS)}; a question of your own is '
                         '{"query": "...", "choices": ["...", "..."], "gold": 0}')
    if row.get('label') == '':
        raise ValueError('it has no answer, as those of a test file have none; take the validation file')
    try:
        question = reader(row)
    except KeyError as error:
        raise ValueError(f'it has no {error}') from None
    strings = [question.context, *question.choices]
    if not question.choices:
        raise ValueError('it has no choices')
    if not all(isinstance(text, str) for text in strings) or not all(question.choices):
        raise ValueError('a text or a choice is no string, or empty')
    if not 0 <= question.gold < len(question.choices):
        raise ValueError(f'the right choice is number {question.gold} of {len(question.choices)}')
    return question


def read(path, part=''):
    """The Questions in a file, a list. `part`: of an archive, dev or train. ValueError if it has none."""
    try:
        rows = rows_of(path, part)
    except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{path} cannot be read as questions ({type(error).__name__}: {error})') from None
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(to_question(row))
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f'{path}, question {number}: {error}') from None
    if not found:
        raise ValueError(f'{path} has no questions')
    return found


def rows_of(path, part):
    if path.endswith('.parquet'):
        import pyarrow.parquet
        return pyarrow.parquet.read_table(path).to_pylist()
    if not path.endswith('.zip'):
        with open(path, encoding='utf-8-sig') as f:  # an editor on Windows may begin it with a byte order mark
            return from_lines(f)
    with zipfile.ZipFile(path) as archive:  # PIQA's, with the right choices in a file of their own
        def lines(end):
            wanted = f'/{part or "dev"}{end}'
            name = next((name for name in archive.namelist() if name.endswith(wanted)), wanted)
            return [line for line in archive.read(name).decode().split('\n') if line]  # KeyError without such a file
        return [{**row, 'label': label} for row, label in zip(from_lines(lines('.jsonl')), lines('-labels.lst'),
                                                              strict=True)]


def from_lines(lines):
    """The values of JSON lines, a list. ValueError with the number of the line that is none."""
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f'line {number}: {error.msg} at character {error.pos + 1}') from None
    return found


def fetch(name, address, sha256, otherwise):
    """The path of a benchmark's file in the user's cache, downloaded once. ValueError if not, and what to do then."""
    folder = files.user_folder('XDG_CACHE_HOME', '.cache')
    if folder is None:
        raise ValueError(f'there is no place for {address}, as HOME names no folder; save it and {otherwise}')
    folder = os.path.join(folder, 'benchmarks')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f'{name}-{os.path.basename(address)}')
    download(address, sha256, path, otherwise)
    with open(path, 'rb') as f:
        if hashlib.file_digest(f, 'sha256').hexdigest() != sha256:
            print(f'{path} is not the file of {address}: its figures are not those of {name}', file=sys.stderr)
    return path


def load(name, shots=0, path='', examples=''):
    """
    The Questions of a task, a list: a name in TASKS, or the path of a file of questions. Before each stand `shots`
    examples with their answers, drawn as lm_eval draws them (but for hellaswag, of which it takes the training file,
    and lambada, where a question may be its own example). `path` and `examples` name files to take instead of those
    that would be downloaded. ValueError if there is no such task, or too few examples.
    """
    if name not in TASKS and not name.endswith(SUFFIXES):
        raise ValueError(f'there is no task {name!r}; it is one of {", ".join(TASKS)}, or a file of questions '
                         f'({", ".join(SUFFIXES)})')
    source, its_examples = TASKS[name] if name in TASKS else (None, None)
    path = path or ('' if source else name)
    file = path or fetch(name, *source[:2], f'name that file in place of {name}')
    questions = read(file, source[2] if source else '')
    if not shots:
        return questions
    if examples or (its_examples and not path):
        pool = read(examples or fetch(name, *its_examples[:2], 'name it: --examples=FILE'),
                    its_examples[2] if its_examples else '')
    else:
        pool = questions
    most = len(pool) - (pool is questions)
    if shots > most:
        raise ValueError(f'shots={shots}, but there are only {most} examples')
    draw, count = random.Random(FEW_SHOT_SEED), shots + (pool is questions or name in WITHOUT_TEST)
    return [with_examples(question, draw.sample(pool, min(count, len(pool))), shots) for question in questions]


def with_examples(question, examples, shots):
    before = [f'{one.context} {one.choices[one.gold]}\n\n' for one in examples if one != question][:shots]
    return Question(''.join(before) + question.context, question.choices, question.gold)


def some(questions, fraction):
    """{number: Question} of so many of the questions, evenly spread: benchmarks are sorted by where they are from."""
    count = max(1, round(fraction * len(questions)))
    return {number: questions[number] for number in (i * len(questions) // count for i in range(count))}


def encode(tokenizer, question):
    """
    (ids of the context, [ids of each choice]): of all ids those of a choice are what is behind the context's own.
    ValueError if the vocabulary lacks a character.
    """
    before = question.context.rstrip()
    ids = tokenizer.encode(before)
    between = f'{question.context[len(before):]} '
    whole = [tokenizer.encode(f'{before}{between}{choice}') for choice in question.choices]
    return ids or [tokenizer.start_id], [all_ids[len(ids):] or all_ids[-1:] for all_ids in whole]


def encode_all(tokenizer, questions):
    """({number: what encode() gives} of {number: Question}, how many are left out because of unknown characters)."""
    known = {}
    for number, question in questions.items():
        try:
            known[number] = encode(tokenizer, question)
        except ValueError:  # a vocabulary of characters
            continue
    return known, len(questions) - len(known)


def tally(question, scores):
    """
    What an answer adds to the sums that figures() takes: [questions, right by log-probability, right by log-probability
    per character, log-probability of the right choice]. scores: (log-probability, whether the model would write it) of
    each choice. If there is one choice only, it is right if the model would write it.
    """
    logprobs = [logprob for logprob, _ in scores]
    per_character = [logprob / len(choice) for logprob, choice in zip(logprobs, question.choices)]
    if len(scores) == 1:
        right = right_norm = scores[0][1]
    else:
        right, right_norm = (max(range(len(scores)), key=values.__getitem__) == question.gold
                             for values in (logprobs, per_character))
    return [1, int(right), int(right_norm), logprobs[question.gold]]


def figures(sums, questions):
    """
    The result of a task from the sums of tally() over {number: Question}, a dict: acc and acc_norm with their standard
    errors, as lm_eval has them. With one choice only, perplexity takes the place of acc_norm: that of a whole answer.
    """
    count, *rights, logprob = sums
    choices = max(len(question.choices) for question in questions.values())
    result = {'questions': int(count)}
    for name, right in zip(('acc', 'acc_norm') if choices > 1 else ('acc',), rights):
        share = right / count
        result |= {name: share, f'{name}_stderr': math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None}
    return result if choices > 1 else result | {'perplexity': console.perplexity(-logprob / count)}


def describe(name, found):
    """What figures() has found, as a line for the terminal."""
    def share(key):
        error = found[f'{key}_stderr']
        return f'{found[key]:.2%}' + ('' if error is None else f' ± {error:.2%}')
    more = f'by character {share("acc_norm")}' if 'acc_norm' in found else (
        f'perplexity {found["perplexity"]:.2f} of the answers')
    return f'{name}: accuracy {share("acc")}, {more}, {found["questions"]:,} questions'


def short(name):
    """The name of a task, or of a file of questions, in results."""
    return os.path.splitext(os.path.basename(name))[0]
