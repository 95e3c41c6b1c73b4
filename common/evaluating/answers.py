"""The answers of a model to the questions of a task: kept while they come, so that what was stopped can go on."""
import contextlib
import functools
import hashlib
import json
import os
import sys
import time

import torch
from tqdm import tqdm

from common import files, scoring, tasks


def score_task(model, tokenizer, name, questions, shots, fraction, about):
    """
    (line, result) of the questions of a task, a list of tasks.Question, or of a fraction of them. ValueError if the
    vocabulary has not the characters of any of them.
    """
    asked = tasks.some(questions, fraction)
    known, unknown = tasks.encode_all(tokenizer, asked)
    if not known:
        raise ValueError(f'{name}: each question has characters that are not in the vocabulary of this model')
    sums, begin = [0, 0, 0, 0.0], time.perf_counter()
    for number, scores in answer(model, tokenizer.vocab_size, known, about['dtype'], tasks.short(name)):
        sums = [a + b for a, b in zip(sums, tasks.tally(asked[number], scores))]
    found = tasks.figures(sums, asked)
    too_long = sum(not scoring.fits(model, *one) for one in known.values())
    notes = [f', each after {shots} solved' * (shots > 0),
             f'; {too_long:,} longer than the context, without their beginning' * (too_long > 0),
             f'; {unknown:,} left out, with characters that the vocabulary lacks' * (unknown > 0)]
    return (tasks.describe(tasks.short(name), found) + ''.join(notes),
            {**about, 'task': tasks.short(name), 'shots': shots, **found, 'too_long': too_long,
             'unknown_characters': unknown, 'seconds': time.perf_counter() - begin})


def answer(model, vocab_size, known, dtype, name):
    """
    Yields (number, scores) of encoded questions {number: (context, endings)}, with progress. Scores are kept in a file
    of the user's cache until all are there.
    """
    path = place(model, known, dtype)
    before = dict(read(path))
    if before:
        print(f'{name}: {len(before):,} of {len(known):,} questions were answered before it was stopped',
              file=sys.stderr)
    yield from before.items()
    left = {number: one for number, one in known.items() if number not in before}
    with open(path or os.devnull, 'a', encoding='utf-8') as f, tqdm(
            total=len(known), initial=len(before), desc=name, unit='questions', disable=None, leave=False) as progress:
        numbers = list(left)
        for i, scores in scoring.score_endings(model, list(left.values()), vocab_size):
            with contextlib.suppress(OSError):  # a full disk ends no evaluation
                print(json.dumps([numbers[i], scores]), file=f, flush=True)
            yield numbers[i], scores
            progress.update()
    if path:
        with contextlib.suppress(OSError):  # another process with the same questions was faster
            os.unlink(path)


@functools.cache  # reading gigabytes takes seconds, and there may be several tasks
def fingerprint(model):
    """A hash of the config and the weights of a model."""
    found = hashlib.sha256(json.dumps(vars(model.config)).encode())
    for p in model.parameters():
        found.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def place(model, known, dtype):
    """The file for the answers of this model to these questions; None if the user has no place for it."""
    folder = files.user_folder('XDG_CACHE_HOME', '.cache')
    if folder is None:
        return None
    key = hashlib.sha256(json.dumps([fingerprint(model), dtype, list(known.items())]).encode())
    folder = os.path.join(folder, 'answers')
    try:
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f'{key.hexdigest()[:32]}.jsonl')
        open(path, 'a').close()
    except OSError as error:
        print(f'{folder} cannot be written ({error.strerror}): if this is stopped, it will begin anew', file=sys.stderr)
        return None
    return path


def read(path):
    """Yields what answer() kept before it was stopped; the last line may be cut off."""
    if path is None:
        return
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            with contextlib.suppress(ValueError, TypeError):
                number, scores = json.loads(line)
                yield number, [tuple(score) for score in scores]
