"""The benchmarks that a run is scored on while it trains: which questions, and what the model answers."""
import contextlib
import json
import random
import re
from types import SimpleNamespace

import pytest
import torch

from common import scoring, tasks
from common.training import benchmarks

CHARS = ''.join(map(chr, range(32, 96)))  # as many as the model has ids
GO_ON, STOP = SimpleNamespace(requested=lambda: 0.0), SimpleNamespace(requested=lambda: 1.0)  # of a StopSignal
META = {'tokenizer': 'char', 'vocab_size': 64, 'chars': list(CHARS)}


def some_text(rng, length):
    return ''.join(rng.choice('ABCDEFGH') for _ in range(length))


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """Files of questions in the working directory: choices.jsonl, with several choices, and words.jsonl, with one."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    choices = [dict(query=some_text(rng, 5), choices=[some_text(rng, 2 + i) for i in range(3)], gold=i % 3)
               for i in range(20)]
    words = [dict(text=f'{some_text(rng, 4)} {some_text(rng, 1)}') for _ in range(10)]
    for name, rows in (('choices', choices), ('words', words)):
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return tmp_path


def test_nothing_is_scored_unless_that_was_asked_for(model):
    assert benchmarks.load(META, '') == {} and benchmarks.score(model, {}, META, contextlib.nullcontext(), GO_ON) == {}


def test_each_task_has_its_own_fraction(questions):
    found = benchmarks.load(META, 'choices.jsonl:0.25, words.jsonl')
    assert {name: list(asked) for name, (asked, _) in found.items()} == {
        'choices': [0, 4, 8, 12, 16], 'words': list(range(10))}
    every = tasks.read('choices.jsonl')
    for number, question in found['choices'][0].items():
        assert question == every[number]
        context, endings = found['choices'][1][number]
        assert ''.join(CHARS[i] for i in context) == question.context
        assert [''.join(CHARS[i] for i in ending) for ending in endings] == [f' {one}' for one in question.choices]


@pytest.mark.parametrize('value, complaint', [
    ('helaswag', "there is no task 'helaswag'"), ('gone.jsonl:0.5', 'gone.jsonl cannot be read'),
    ('choices.jsonl:0', "'0' is no fraction"), ('choices.jsonl:1.5', "'1.5' is no fraction"),
    ('choices.jsonl:half', "'half' is no fraction"), ('choices.jsonl:nan', "'nan' is no fraction"),
    ('strange.jsonl', 'each question of strange.jsonl has characters that are not in the vocabulary'),
    ('choices.jsonl,choices.jsonl:0.5', "'choices' names other figures of the run, too"),
    ('val.jsonl', "'val' names other figures of the run, too; give val.jsonl another name")])
def test_a_mistake_is_named(questions, value, complaint):
    (questions / 'strange.jsonl').write_text(json.dumps(dict(text='both gone')))
    (questions / 'val.jsonl').write_text(json.dumps(dict(text='A B')))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        benchmarks.load(META, value)


def test_questions_with_unknown_characters_are_left_out_and_said(questions, capsys):
    with open('words.jsonl', 'a') as f:
        f.write('\n' + json.dumps(dict(text='A z')))
    asked, known = benchmarks.load(META, 'words.jsonl')['words']
    assert list(asked) == list(range(11)) and list(known) == list(range(10))
    assert 'words.jsonl: 1 of 11 questions are left out, with characters that the ' in capsys.readouterr().out


def test_the_figures_are_those_of_the_models_answers(model, questions, capsys):
    found = benchmarks.load(META, 'choices.jsonl:0.5,words.jsonl')
    expected, lines = {}, []
    for name, (asked, known) in found.items():
        scores, numbers = dict(scoring.score_endings(model, list(known.values()), 64)), list(known)
        answers = {numbers[i]: one for i, one in scores.items()}
        sums = [sum(column) for column in zip(*(tasks.tally(asked[i], answers[i]) for i in known))]
        figures = tasks.figures(sums, asked)
        lines.append(tasks.describe(name, figures))
        expected |= {f'{name}_{key}': value for key, value in figures.items() if key != 'questions'}
    model.train()
    assert benchmarks.score(model, found, META, contextlib.nullcontext(), GO_ON) == pytest.approx(expected)
    assert model.training and capsys.readouterr().out.splitlines() == lines
    assert expected.keys() == {'choices_acc', 'choices_acc_stderr', 'choices_acc_norm', 'choices_acc_norm_stderr',
                               'words_acc', 'words_acc_stderr', 'words_perplexity'}
    model.eval()


def test_nothing_is_dropped_while_a_model_is_scored(model, questions):
    found = benchmarks.load(META, 'words.jsonl')
    model.eval()
    before = benchmarks.score(model, found, META, contextlib.nullcontext(), GO_ON)
    for module in model.modules():
        if hasattr(module, 'p'):
            module.p = 0.5
    model.train()
    assert benchmarks.score(model, found, META, contextlib.nullcontext(), GO_ON) == pytest.approx(before)
    for module in model.modules():
        if hasattr(module, 'p'):
            module.p = 0.0
    model.eval()


@pytest.mark.parametrize('count', [2, 3, 15])
def test_the_ranks_share_the_questions(model, questions, monkeypatch, count):
    """Each question once, and also where some ranks have none."""
    found = benchmarks.load(META, 'words.jsonl')
    monkeypatch.setattr('common.distributed.world_size', lambda: count)
    asked, sums = [], []

    def watched(model, groups, vocab_size, original=scoring.score_endings):
        asked.extend(map(str, groups))
        return original(model, groups, vocab_size)
    monkeypatch.setattr(scoring, 'score_endings', watched)
    monkeypatch.setattr('common.distributed.all_reduce', lambda values, device: sums.append(values) or [1, 1, 1, -1])
    for rank in range(count):
        monkeypatch.setattr('common.distributed.rank', lambda: rank)
        benchmarks.score(model, found, META, contextlib.nullcontext(), GO_ON)
    assert sorted(asked) == sorted(map(str, found['words'][1].values()))
    assert sum(one[0] for one in sums) == 10 and len(sums) == count
    model.eval()


def test_a_signal_does_not_wait_for_all_questions(model, questions, monkeypatch, capsys):
    asked, original = [], tasks.tally
    monkeypatch.setattr(tasks, 'tally', lambda *args: asked.append(args) or original(*args))
    found = benchmarks.load(META, 'choices.jsonl')
    assert benchmarks.score(model, found, META, contextlib.nullcontext(), STOP) == {}
    assert len(asked) == 1 and 'choices is not scored: stopped by a signal' in capsys.readouterr().out
    model.eval()


def test_a_model_that_has_diverged_has_no_figures_and_ends_no_run(model, questions, capsys):
    found, weight = benchmarks.load(META, 'words.jsonl'), model.lm_head.weight
    before = weight.data.clone()
    weight.data.fill_(torch.nan)
    assert benchmarks.score(model, found, META, contextlib.nullcontext(), GO_ON) == {}
    weight.data.copy_(before)
    assert 'words is not scored: the model computes numbers that are not finite' in capsys.readouterr().out
    model.eval()


def test_a_model_is_scored_in_the_precision_of_the_run(model, questions, monkeypatch):
    seen, original = [], scoring.look_up
    monkeypatch.setattr(scoring, 'look_up', lambda logits, ids: seen.append(logits.dtype) or original(logits, ids))
    benchmarks.score(model, benchmarks.load(META, 'words.jsonl'), META, torch.autocast('cpu', torch.bfloat16), GO_ON)
    assert set(seen) == {torch.bfloat16}
    model.eval()
