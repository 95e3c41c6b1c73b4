"""Benchmarks: the files of their authors become the questions of lm_eval, and its figures."""
import hashlib
import json
import math
import os
import random
import re
import statistics
import zipfile

import pytest

from common import tasks
from common.tasks import Question
from common.tokenizer import BPETokenizer, CharTokenizer, train_bpe

OWN = [dict(query=f'question {i}', choices=[f'yes {i}', f'no {i}'], gold=i % 2) for i in range(12)]


def write_lines(path, rows):
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n', encoding='utf-8')
    return str(path)


def write_piqa(path, labels):
    """An archive as PIQA's authors made it: questions and the labels of them in files of their own."""
    with zipfile.ZipFile(path, 'w') as archive:
        for part, numbers in labels.items():
            rows = [dict(id=str(i), goal=f'{part} {i}', sol1=f'first {i}', sol2=f'second \u2028{i}')
                    for i in range(len(numbers))]
            archive.writestr(f'physicaliqa-train-dev/{part}.jsonl',
                             ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
            archive.writestr(f'physicaliqa-train-dev/{part}-labels.lst', '\n'.join(map(str, numbers)) + '\n')
    return str(path)


# the formats of their authors

HELLASWAG = dict(ind=24, activity_label='Roof shingle removal', ctx_a='A man is sitting on a roof.', ctx_b='he',
                 ctx='A man is sitting on a roof. he', split='val', label=3,
                 endings=['is using wrap.', 'is ripping  level tiles off.', "is [header] holding a cube.", ' pulls. '])
ARC = dict(id='MCAS_2000', question='Which tool cuts?', answerKey='B', choices={
    'text': ['a spoon', 'a saw', 'a cup'], 'label': ['A', 'B', 'C']})
ARC_OF_AI2 = dict(id='MCAS_2000', answerKey='3', question=dict(stem='Which tool cuts?', choices=[
    dict(text='a spoon', label='1'), dict(text='a cup', label='2'), dict(text='a saw', label='3')]))


@pytest.mark.parametrize('row, expected', [
    (HELLASWAG, Question('Roof shingle removal: A man is sitting on a roof. He',
                         ['is using wrap.', 'is ripping level tiles off.', 'is holding a cube.', 'pulls.'], 3)),
    (dict(HELLASWAG, activity_label='Health', ctx_a='[header] How to sleep [title] Buy a bed. [step] Go.', ctx_b='',
          label='0'),
     Question('Health: How to sleep. Buy a bed. Go.',
              ['is using wrap.', 'is ripping level tiles off.', 'is holding a cube.', 'pulls.'], 0)),
    (ARC, Question('Question: Which tool cuts?\nAnswer:', ['a spoon', 'a saw', 'a cup'], 1)),
    (ARC_OF_AI2, Question('Question: Which tool cuts?\nAnswer:', ['a spoon', 'a cup', 'a saw'], 2)),
    (dict(goal='To cut', sol1='a saw', sol2='a cup', label='0'),
     Question('Question: To cut\nAnswer:', ['a saw', 'a cup'], 0)),
    (dict(text='in the end she said yes'), Question('in the end she said', ['yes'], 0)),
    (OWN[1], Question('question 1', ['yes 1', 'no 1'], 1))])
def test_the_rows_of_each_author_become_questions(row, expected):
    assert tasks.to_question(row) == expected


def test_rows_are_cleaned_as_lm_eval_does_it():
    utils = pytest.importorskip('lm_eval.tasks.hellaswag.utils')
    datasets = pytest.importorskip('datasets')
    rows = [dict(activity_label=label, ctx_a=before, ctx_b=after, endings=[' [step] a  b ', 'c [title] d'], label='1')
            for label in ('Health', 'Sharpening [x] knives') for after in ('', 'he  Is', 'éa')
            for before in ('[header] How to [title] do it  [substeps] now. ', 'A man sits.')]
    theirs = utils.process_docs(datasets.Dataset.from_list(rows))
    ours = [tasks.to_question(row) for row in rows]
    assert [(one.context, one.choices, one.gold) for one in ours] == [
        (one['query'], one['choices'], one['gold']) for one in theirs]


def test_questions_are_read_from_lines_parquet_and_piqas_archive(tmp_path):
    expected = [Question(row['query'], row['choices'], row['gold']) for row in OWN]
    assert tasks.read(write_lines(tmp_path / 'a.jsonl', OWN)) == expected
    (tmp_path / 'b.jsonl').write_text('\n\n'.join(json.dumps(row) for row in OWN))
    assert tasks.read(str(tmp_path / 'b.jsonl')) == expected, 'empty lines are no questions'
    pyarrow = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ARC, ARC]), tmp_path / 'c.parquet')
    assert tasks.read(str(tmp_path / 'c.parquet')) == [tasks.to_question(ARC)] * 2
    path = write_piqa(tmp_path / 'd.zip', {'train': [0, 0, 1], 'dev': [1, 0]})
    assert [(one.context, one.gold) for one in tasks.read(path, 'dev')] == [
        ('Question: dev 0\nAnswer:', 1), ('Question: dev 1\nAnswer:', 0)]
    assert [one.gold for one in tasks.read(path, 'train')] == [0, 0, 1]
    assert tasks.read(path)[1].choices == ['first 1', 'second \u20281'], 'without a part its dev'


@pytest.mark.parametrize('row, complaint', [
    (dict(sentence='x'), 'it has none of endings, answerKey, goal, query, text; a question of your own is {"query"'),
    ('query', 'it has none of '), (7, 'it has none of '), (['query'], 'it has none of '),
    (dict(query='x', gold=0), "it has no 'choices'"), (dict(query='x', choices=['a', 'b']), "it has no 'gold'"),
    (dict(query='x', choices='ab', gold=0), 'its choices are no list'),
    (dict(query='x', choices=['a', 'b'], gold=0.5), 'gold is no whole number'),
    (dict(query='x', choices=[], gold=0), 'it has no choices'),
    (dict(query='x', choices=['a', ''], gold=0), 'is no string, or empty'),
    (dict(query='x', choices=['a', 7], gold=0), 'is no string, or empty'),
    (dict(query=None, choices=['a', 'b'], gold=0), 'is no string, or empty'),
    (dict(query='x', choices=['a', 'b'], gold=2), 'the right choice is number 2 of 2'),
    (dict(query='x', choices=['a', 'b'], gold=-1), 'the right choice is number -1 of 2'),
    (dict(HELLASWAG, label=''), 'it has no answer'), (dict(ARC, answerKey='E'), "'E' is not in list"),
    (dict(HELLASWAG, ctx_b=None), 'capitalize'), (dict(text=7), 'rpartition'), (dict(text='alone '), 'or empty')])
def test_a_row_that_is_no_question_is_named(tmp_path, row, complaint):
    path = write_lines(tmp_path / 'bad.jsonl', [*OWN[:2], row])
    with pytest.raises(ValueError, match=re.escape(f'{path}, question 3: ') + '.*' + re.escape(complaint)):
        tasks.read(path)


@pytest.mark.parametrize('name, content, complaint', [
    ('a.jsonl', b'{"query": "x"\n', "line 1: Expecting ',' delimiter at character 15"),
    ('a.jsonl', json.dumps(OWN[0]).encode() + b'\n\n{"query"; 1}', "line 3: Expecting ':' delimiter at character 9"),
    ('a.jsonl', b'\xff\xfe\n', 'UnicodeDecodeError'), ('a.parquet', b'no parquet', 'ArrowInvalid'),
    ('a.zip', b'no archive', 'BadZipFile'), ('a.jsonl', None, 'No such file')])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, complaint):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f'{path} cannot be read as questions (') + '.*'
                       + re.escape(complaint)):
        tasks.read(str(path))


def test_an_archive_that_is_not_piqas_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('else.txt', 'x')
    with pytest.raises(ValueError, match="no item named '/dev.jsonl'"):
        tasks.read(str(tmp_path / 'a.zip'))
    with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as archive:
        archive.writestr('p/dev.jsonl', json.dumps(dict(goal='x', sol1='a', sol2='b')))
        archive.writestr('p/dev-labels.lst', '0\n1\n')
    with pytest.raises(ValueError, match='longer than'):
        tasks.read(str(tmp_path / 'b.zip'))


def test_a_file_without_questions_is_named(tmp_path):
    (tmp_path / 'empty.jsonl').write_text('\n')
    with pytest.raises(ValueError, match='empty.jsonl has no questions'):
        tasks.load(str(tmp_path / 'empty.jsonl'))


# examples

def answered(row):
    return f'{row["query"]} {row["choices"][row["gold"]]}\n\n'


@pytest.mark.parametrize('shots', [1, 3, 11])
def test_examples_are_drawn_from_the_other_questions_as_lm_eval_draws_them(tmp_path, shots):
    found = tasks.load(write_lines(tmp_path / 'own.jsonl', OWN), shots)
    draw = random.Random(1234)
    for row, question in zip(OWN, found, strict=True):
        drawn = [one for one in draw.sample(OWN, shots + 1) if one != row][:shots]
        assert len(drawn) == shots
        assert question == Question(''.join(map(answered, drawn)) + row['query'], row['choices'], row['gold'])


def test_examples_of_a_file_of_their_own_are_drawn_as_lm_eval_draws_them(tmp_path):
    others = [dict(row, query=f'other {i}') for i, row in enumerate(OWN * 3)]
    path, examples = write_lines(tmp_path / 'own.jsonl', OWN), write_lines(tmp_path / 'others.jsonl', others)
    draw = random.Random(1234)
    assert [one.context for one in tasks.load(path, 2, examples=examples)] == [
        ''.join(map(answered, draw.sample(others, 2))) + row['query'] for row in OWN]


@pytest.mark.parametrize('task, more', [('piqa', 1), ('arc_easy', 0)])
def test_where_lm_eval_draws_one_example_more_so_do_we(tmp_path, task, more):
    """It compares the split of the examples with that of the test, and neither is named in a task without a test."""
    others = [dict(row, query=f'other {i}') for i, row in enumerate(OWN * 3)]
    path, examples = write_lines(tmp_path / 'own.jsonl', OWN), write_lines(tmp_path / 'others.jsonl', others)
    draw = random.Random(1234)
    assert [one.context for one in tasks.load(task, 2, path, examples)] == [
        ''.join(map(answered, draw.sample(others, 2 + more)[:2])) + row['query'] for row in OWN]
    assert len(tasks.load(task, 3, path, write_lines(tmp_path / 'three.jsonl', others[:3]))) == 12


def test_a_question_that_stands_twice_in_a_file_is_no_example_of_itself(tmp_path):
    for question in tasks.load(write_lines(tmp_path / 'own.jsonl', OWN[:3] * 2), 2):
        assert question.context.count('question ') in (2, 3) and question.context[-10:] not in question.context[:-10]


def test_examples_of_a_file_that_is_named_come_from_that_file(tmp_path, cache):
    path = write_lines(tmp_path / 'own.jsonl', OWN)
    assert tasks.load('arc_easy', 2, path) == tasks.load(path, 2)


def test_more_examples_than_there_are_is_refused(tmp_path):
    path = write_lines(tmp_path / 'own.jsonl', OWN)
    with pytest.raises(ValueError, match='shots=12, but there are only 11 examples'):
        tasks.load(path, 12)
    assert len(tasks.load(path, 12, examples=path)) == 12
    with pytest.raises(ValueError, match='shots=13, but there are only 12 examples'):
        tasks.load(path, 13, examples=path)


# files from the network

def test_each_benchmark_is_named_by_a_safe_address_and_its_sha256():
    sources = [source for pair in tasks.TASKS.values() for source in pair if source]
    assert len(sources) == 8 and len(set(sources)) == 8
    for address, sha256, part in sources:
        assert re.fullmatch(r'https://[\w./-]+', address) and address.endswith(tasks.SUFFIXES)
        assert re.fullmatch('[0-9a-f]{64}', sha256) and part in ('', 'dev', 'train')
        assert not part or address.endswith('.zip')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where a user's cache would be."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr('common.download.WAITS', (0, 0))
    return tmp_path / 'cache' / 'nanogpt' / 'benchmarks'


def test_a_benchmark_is_downloaded_once_and_kept_only_if_it_is_the_right_file(tmp_path, cache, monkeypatch, capsys):
    path = tmp_path / 'published.jsonl'
    write_lines(path, OWN)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(tasks.TASKS, 'mine', ((path.as_uri(), '0' * 64, ''), None))
    with pytest.raises(ValueError, match=f'has changed: its sha256 is {right}.*name that file in place of mine'):
        tasks.load('mine')
    assert os.listdir(cache) == []
    monkeypatch.setitem(tasks.TASKS, 'mine', ((path.as_uri(), right, ''), (path.as_uri(), right, '')))
    first = tasks.load('mine', shots=1)
    path.unlink()
    assert tasks.load('mine', shots=1) == first and os.listdir(cache) == ['mine-published.jsonl']
    said = capsys.readouterr()
    assert said.out.count('downloading') == 2 and not said.err, 'questions and examples of one file are downloaded once'
    with open(cache / 'mine-published.jsonl', 'a') as f:
        f.write('\n')
    tasks.load('mine')
    assert 'its figures are not those of mine' in capsys.readouterr().err


@pytest.mark.parametrize('shots, remedy', [(0, 'name that file in place of mine'), (1, 'name it: --examples=FILE')])
def test_without_a_network_the_message_says_what_to_do(tmp_path, cache, monkeypatch, shots, remedy):
    path = tmp_path / 'published.jsonl'
    write_lines(path, OWN)
    right, gone = hashlib.sha256(path.read_bytes()).hexdigest(), (tmp_path / 'gone.jsonl').as_uri()
    ours = (path.as_uri() if shots else gone, right, '')
    monkeypatch.setitem(tasks.TASKS, 'mine', (ours, (gone, right, '')))
    with pytest.raises(ValueError) as error:
        tasks.load('mine', shots)
    said = str(error.value)
    assert f'put that file at {cache}/mine-gone.jsonl' in said and remedy in said
    assert tasks.load('mine', path=str(path)) == tasks.read(str(path)), 'a file that is named needs no network'


def test_a_user_without_a_cache_is_told_to_name_the_file(monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', '')
    with pytest.raises(ValueError, match='HOME names no folder; save it and name that file in place of hellaswag'):
        tasks.load('hellaswag')


@pytest.mark.parametrize('name', ['helaswag', 'mine.txt', 'mine'])
def test_a_task_that_is_not_there_is_named_with_those_that_are(name):
    with pytest.raises(ValueError, match=f'there is no task {name!r}; it is one of hellaswag, arc_easy, arc_challenge, '
                       r'piqa, lambada, or a file of questions \(.jsonl, .parquet, .zip\)'):
        tasks.load(name)


# asking

@pytest.mark.parametrize('count, fraction, expected', [(10, 1.0, list(range(10))), (10, 0.5, [0, 2, 4, 6, 8]),
                                                       (10, 0.3, [0, 3, 6]), (7, 0.001, [0]), (3, 0.7, [0, 1])])
def test_a_fraction_of_the_questions_is_evenly_spread(count, fraction, expected):
    questions = [Question(f'{i}', ['a']) for i in range(count)]
    assert tasks.some(questions, fraction) == {i: questions[i] for i in expected}


LEARNED = BPETokenizer(train_bpe(['the cat sees one bird, the dog hears my fish. '] * 9, 300))


@pytest.mark.parametrize('context', ['the cat', 'the cat ', 'the cat\n  ', '', '  ', 'the cat sees th'])
def test_a_choice_is_what_comes_behind_the_ids_of_the_context(context):
    before, choices = tasks.encode(LEARNED, Question(context, ['sees one', 'hears', 'e']))
    assert before == (LEARNED.encode(context.rstrip()) or [LEARNED.end_id])
    for ids, choice in zip(choices, ['sees one', 'hears', 'e'], strict=True):
        assert ids == LEARNED.encode(f'{context} {choice}')[len(LEARNED.encode(context.rstrip())):]
    assert LEARNED.decode(choices[1]).endswith(' hears'), 'a space at the end of the context is part of the choice'


def test_ids_are_those_of_lm_eval():
    api = pytest.importorskip('lm_eval.api.model')

    class Theirs(api.TemplateLM):
        eot_token_id = LEARNED.end_id
        tok_encode = lambda self, string, add_special_tokens=None: LEARNED.encode(string)
        _loglikelihood_tokens = lambda self, requests, **options: requests
        loglikelihood_rolling = generate_until = None

    for context in ('the cat', 'the cat \n ', '', 'the cat sees th', 'the'):
        question = Question(context, ['sees one', 'bird,'])
        requests = [type('Request', (), {'args': (context, f' {choice}')}) for choice in question.choices]
        theirs = [(before, ids) for _, before, ids in Theirs().loglikelihood(requests, disable_tqdm=True)]
        before, choices = tasks.encode(LEARNED, question)
        assert theirs == [(before, ids) for ids in choices]


def test_questions_with_unknown_characters_are_left_out_and_counted():
    questions = {0: Question('ab', ['a']), 3: Question('ab', ['a', 'x']), 5: Question('x', ['a']),
                 6: Question('b', ['a', 'b']), 7: Question('', ['x'])}
    known, unknown = tasks.encode_all(CharTokenizer(list(' ab')), questions)
    assert known == {0: ([1, 2], [[0, 1]]), 6: ([2], [[0, 1], [0, 2]])} and unknown == 3


# figures

def test_an_answer_is_right_by_log_probability_and_by_that_per_character():
    question = Question('', ['long answer', 'short'], 0)
    assert tasks.tally(question, [(-5.0, False), (-4.0, True)]) == [1, 0, 1, -5.0]
    assert tasks.tally(question, [(-4.0, False), (-1.5, False)]) == [1, 0, 0, -4.0]
    assert tasks.tally(question, [(-1.0, False), (-4.0, False)]) == [1, 1, 1, -1.0]
    assert tasks.tally(Question('', ['long answer', 'short'], 1), [(-5.0, False), (-4.0, False)]) == [1, 1, 0, -4.0]
    assert tasks.tally(Question('', ['ab', 'cd'], 1), [(-1.0, False), (-1.0, False)])[1:3] == [0, 0], 'the first of two'


def test_a_single_choice_is_right_if_the_model_would_write_it():
    assert tasks.tally(Question('', ['word']), [(-2.0, True)]) == [1, 1, 1, -2.0]
    assert tasks.tally(Question('', ['word']), [(-0.1, False)]) == [1, 0, 0, -0.1]


@pytest.mark.parametrize('right', [[1, 0, 0, 1, 1, 0, 1], [1, 1], [0, 0, 0]])
def test_a_standard_error_is_the_deviation_over_the_root_of_the_number(right):
    asked = {i: Question('', ['a', 'b']) for i in range(len(right))}
    rates = right, [1, *right[1:]]
    found = tasks.figures([len(right), *map(sum, rates), -3.0], asked)
    assert found.keys() == {'questions', 'acc', 'acc_stderr', 'acc_norm', 'acc_norm_stderr'}
    for key, values in zip(('acc', 'acc_norm'), rates):
        assert found[key] == pytest.approx(statistics.mean(values)) and found['questions'] == len(values)
        assert found[f'{key}_stderr'] == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))
    assert tasks.describe('mine', found) == (
        f'mine: accuracy {found["acc"]:.2%} ± {found["acc_stderr"]:.2%}, by character {found["acc_norm"]:.2%} ± '
        f'{found["acc_norm_stderr"]:.2%}, {len(right)} questions')


def test_with_one_choice_the_perplexity_of_the_whole_answer_is_told():
    found = tasks.figures([4, 1, 1, -6.0], {i: Question('', ['a']) for i in range(4)})
    assert found == {'questions': 4, 'acc': 0.25, 'acc_stderr': pytest.approx(0.25), 'perplexity': math.exp(1.5)}
    assert tasks.describe('lambada', found) == (
        'lambada: accuracy 25.00% ± 25.00%, perplexity 4.48 of the answers, 4 questions')


def test_of_one_question_no_error_is_known():
    found = tasks.figures([1.0, 1.0, 0.0, -2.0], {7: Question('', ['a', 'b'])})
    assert found == {'questions': 1, 'acc': 1.0, 'acc_stderr': None, 'acc_norm': 0.0, 'acc_norm_stderr': None}
    assert tasks.describe('mine', found) == 'mine: accuracy 100.00%, by character 0.00%, 1 questions'


def test_a_file_of_questions_is_named_in_results_without_its_folder():
    assert [tasks.short(name) for name in ('piqa', 'a.b/mine.jsonl', 'x.zip')] == ['piqa', 'mine', 'x']


def test_an_answer_is_as_long_as_its_characters_not_its_bytes():
    question = Question('x', ['가나다', 'abcd'], gold=0)  # 3 characters of 9 bytes, and 4
    assert tasks.tally(question, [(-6.0, False), (-8.4, False)]) == [1, 1, 1, -6.0]
    assert tasks.tally(question, [(-6.6, False), (-8.4, False)]) == [1, 1, 0, -6.6]


def test_without_a_context_an_answer_follows_what_a_text_begins_with():
    chars = CharTokenizer(['a', 'b', '\n', ' '])
    assert tasks.encode(chars, Question('', ['ab'])) == ([2], [[3, 0, 1]])
