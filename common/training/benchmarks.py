"""The benchmarks that a run is scored on at each of its evaluations (evaluate_tasks)."""
import math
import os

from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from common import distributed, scoring, tasks
from common.tokenizer import from_meta


def load(meta, evaluate_tasks):
    """
    {name: (Questions, what tasks.encode() gives)}, both dicts by their numbers, of tasks with commas between them, each
    with the fraction of its questions behind a colon, or without all of them: 'hellaswag:0.05,mine.jsonl'. ValueError
    if there is no such task, or if the vocabulary lacks characters of each question.
    """
    found, tokenizer = {}, from_meta(meta) if evaluate_tasks else None
    for one in filter(None, evaluate_tasks.split(',')):
        name, _, fraction = os.path.expanduser(one.strip()).partition(':')
        try:
            share = float(fraction or 1.0)
        except ValueError:
            share = 0.0
        if not 0.0 < share <= 1.0:
            raise ValueError(f'evaluate_tasks={evaluate_tasks!r}: {fraction!r} is no fraction above 0 and at most 1')
        if tasks.short(name) in (*found, 'val'):  # 'val_acc' is the accuracy of the next token
            raise ValueError(f'evaluate_tasks={evaluate_tasks!r}: {tasks.short(name)!r} names other figures of the '
                             f'run, too; give {name} another name')
        distributed.once_per_disk(lambda: tasks.load(name))  # which may download
        asked = tasks.some(tasks.load(name), share)
        known, unknown = tasks.encode_all(tokenizer, asked)
        if not known:
            raise ValueError(f'evaluate_tasks={evaluate_tasks!r}: each question of {name} has characters that are not '
                             'in the vocabulary of the dataset')
        if unknown:
            distributed.print0(f'{name}: {unknown:,} of {len(asked):,} questions are left out, with characters that '
                               'the vocabulary lacks')
        found[tasks.short(name)] = asked, known
    return found


def score(model, questions, meta, ctx, stop_signal):
    """
    {'hellaswag_acc': 0.31, ...} from what load() gave, printed, too. The ranks share the questions, unless the model is
    sharded over them: then all must compute the same. What a signal stopped, or is not finite, is left out.
    """
    rank, count, device = distributed.rank(), distributed.world_size(), str(next(model.parameters()).device)
    sharded, result = isinstance(model, FSDPModule), {}
    model.eval()
    for name, (asked, known) in questions.items():
        numbers, sums = list(known) if sharded else list(known)[rank::count], [0.0] * 4
        answers = scoring.score_endings(model, [known[number] for number in numbers], meta['vocab_size'])
        try:
            with ctx:
                for i, scores in tqdm(answers, name, len(numbers), delay=5, leave=False, disable=rank > 0 or None):
                    sums = [a + b for a, b in zip(sums, tasks.tally(asked[numbers[i]], scores))]
                    if stop_signal.requested() and not sharded:
                        raise ValueError('stopped by a signal')
        except ValueError as error:
            print(f'{name} is not scored: {error}')
            sums = [math.nan] * 4
        sums = sums if sharded else distributed.all_reduce(sums, device)
        if math.isnan(sums[0]):
            continue
        found = tasks.figures(sums, asked)
        distributed.print0(tasks.describe(name, found))
        result |= {f'{name}_{key}': value for key, value in found.items() if key != 'questions'}
    model.train()
    return result
