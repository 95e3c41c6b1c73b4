"""
Ids that are no text, from bins that a user's program has written to an array of new ones: docs/own_ids.md at toy size,
and what each script makes of such a model.
"""
import json
import os
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import torch

from common.sampling.speaker import vocabulary
from common.tokenizer import IdTokenizer
from conftest import TOY, learned, read_metrics, slow
from model import GPT
from pages import unpacked
from running import ROOT, ok, python
from test_docs import blocks, execute, read, toy

PAGE = blocks(read('docs/own_ids.md'))
SHELL = [lines for info, lines in PAGE if info.startswith('sh')]
PYTHON, = ['\n'.join(lines) for info, lines in PAGE if info == 'python']


@pytest.fixture(scope='session')
def melody(tmp_path_factory):
    """The dataset that the page's program writes."""
    place = tmp_path_factory.mktemp('melody')
    (place / 'data').mkdir()
    (place / 'melody.py').write_text(PYTHON)
    ok(python('melody.py', cwd=place))
    return str(place / 'data' / 'melody')


@pytest.fixture(scope='session')
def musician(melody, tmp_path_factory):
    """The out_dir of a finished toy run on it."""
    place = tmp_path_factory.mktemp('musician')
    ok(python(os.path.join(ROOT, 'train.py'), *TOY, f'--dataset={melody}', '--out_dir=out', '--max_iters=40',
              '--lr_decay_iters=40', '--sample_prompts=12, 13|', cwd=place))
    return str(place / 'out')


@pytest.fixture
def use(run, musician):
    """use('sample.py', ...): a script with this model."""
    return lambda script, *args, **more: run(script, f'--out_dir={musician}', *args, **more)


@pytest.fixture
def sample(use):
    return lambda *args, **more: use('sample.py', '--device=cpu', '--max_new_tokens=6', *args, **more)


def objects(done):
    return [json.loads(line) for line in ok(done).stdout.splitlines()]


def ids_of(text):
    return [int(word) for word in text.split()]


# the page

@pytest.fixture
def project(tmp_path):
    """A copy of the project, with a genome and the page's program in it."""
    place = tmp_path / 'project'
    for folder in ('common', 'config', 'data'):
        shutil.copytree(os.path.join(ROOT, folder), place / folder,
                        ignore=shutil.ignore_patterns('__pycache__', '*.bin', 'meta.json', 'input.txt'))
    for name in ('train.py', 'sample.py', 'model.py', 'configurator.py'):
        shutil.copy(os.path.join(ROOT, name), place)
    bases = np.random.default_rng(0).choice(list('ACGTacgt'), (50, 60))
    (place / 'genome.fa').write_text('>one\r\n' + '\r\n'.join(map(''.join, bases)) + '\n>two\n' + 'ACGT' * 20 + '\n')
    (place / 'melody.py').write_text(PYTHON)
    return place


@pytest.mark.slow
@pytest.mark.parametrize('lines', SHELL, ids=['DNA', 'numpy'])
def test_the_commands_of_the_page_work(project, lines):
    for line in lines:
        command, _, target = line.partition(' > ')
        if line.startswith('python ') and not line.startswith('python -c'):
            printed = ok(execute(toy(shlex.split(command)), project)).stdout
            if target:
                (project / target).write_text(printed)
        else:
            printed = subprocess.run(line, shell=True, cwd=project, check=True, capture_output=True, text=True).stdout
    if 'genome' in lines[0]:
        meta = json.loads((project / 'data' / 'genome' / 'meta.json').read_text())
        assert meta['chars'] == 'ACGT' and meta['train_tokens'] + meta['val_tokens'] == 50 * 60 + 80
        assert re.match('ACGTTGCA[ACGT]{3}\n', printed)
    else:
        assert re.fullmatch(r'\[array\(\[ *\d+, *\d+, *\d+\]\)\]\n', printed), 'of one sample with three new ids'


def test_no_model_can_do_better_than_the_page_says():
    """The entropy of the walk: of its places, which a model cannot see better than the notes that it does see."""
    steps, places = np.array([-2, -1, 1, 2]), np.arange(48)
    entropy = 0.0
    for place in places:
        shares = np.bincount(abs((place + steps) % 48 - 24)) / 4
        entropy -= (shares[shares > 0] * np.log(shares[shares > 0])).sum() / len(places)
    assert f'below a loss of {entropy:.3f} here' in read('docs/own_ids.md')


# train.py

def test_a_run_learns_them_shows_samples_and_has_no_bits_per_byte(musician):
    evaluations = read_metrics(musician)[1]
    assert learned(musician) and all(line['bits_per_byte'] is None for line in evaluations)
    assert GPT.from_checkpoint(musician).config.vocab_size == 25  # not padded: the user has said how many there are
    with open(os.path.join(musician, 'samples', 'iter_000040.txt')) as f:
        first, second = f.read().split('\n---------------\n')
    assert ids_of(first)[:2] == [12, 13] and len(ids_of(first)) == 202
    assert ids_of(second)[0] == 0 and len(ids_of(second)) == 201, 'an empty prompt begins with id 0'


def test_a_run_goes_on_with_the_same_ids_only(run, musician, melody, tmp_path):
    shutil.copytree(melody, tmp_path / 'more')
    meta = json.loads((tmp_path / 'more' / 'meta.json').read_text())
    (tmp_path / 'more' / 'meta.json').write_text(json.dumps({**meta, 'vocab_size': 30}))
    begin = 'train.py', *TOY, '--max_iters=1', f'--init_from={musician}'
    assert 'iter 0: loss 1.' in ok(run(*begin, f'--dataset={melody}', '--out_dir=other')).stdout
    done = run(*begin, '--dataset=more', '--out_dir=new')
    assert done.returncode == 2 and 'the dataset has vocab_size=30, the checkpoint was trained on vocab_size=25' in (
        done.stderr)
    shutil.copytree(musician, tmp_path / 'out')
    resumed = run('train.py', *TOY, f'--dataset={melody}', '--init_from=resume', '--out_dir=out', '--max_iters=42')
    assert 'iter 41: loss 1.' in ok(resumed).stdout


def test_a_bin_with_too_large_an_id_or_of_another_dtype_is_refused(run, melody, tmp_path):
    shutil.copytree(melody, tmp_path / 'mine')
    ids = np.fromfile(tmp_path / 'mine' / 'val.bin', np.uint16)
    for changed, message in ((np.where(np.arange(len(ids)) == 5, 25, ids).astype(np.uint16), 'the token id 25'),
                             (ids.astype(np.int64), 'has 80000 tokens, but its meta.json says 20000')):
        changed.tofile(tmp_path / 'mine' / 'val.bin')
        done = run('train.py', *TOY, '--dataset=mine')
        assert done.returncode == 2 and message in done.stderr


# sample.py

def test_samples_continue_the_ids(sample):
    first, second, _ = ok(sample('--start=12 13 15', '--num_samples=2')).stdout.split('\n---------------\n')
    assert first != second and all(re.fullmatch(r'12 13 15( \d+){6}', text) for text in (first, second))


def test_json_has_the_ids_of_prompts_in_any_form(sample, tmp_path):
    (tmp_path / 'prompt.txt').write_text('12 13\n15\n')
    (tmp_path / 'prompts.txt').write_text('12, 13,15 \n 7,\n')
    found = [objects(sample(f'--start={form}', '--json=True', '--num_samples=1', '--temperature=0'))
             for form in ("['12 13 15', '7']", 'FILE:prompt.txt', 'LINES:prompts.txt')]
    (first, second), (of_file,), of_lines = found
    for one in (first, of_file, of_lines[0]):
        assert one['tokens'] == first['tokens'] == ids_of(one['text']) and len(one['tokens']) == 6
    assert second['tokens'] == of_lines[1]['tokens']


@pytest.mark.parametrize('args', [(), ('--start=',)])
def test_without_a_prompt_a_text_begins_behind_id_0(sample, args):
    shared = '--json=True', '--num_samples=1', '--logprobs=True'
    (found,), (behind,) = objects(sample(*shared, *args)), objects(sample(*shared, '--start=0'))
    assert found['tokens'] == behind['tokens'] and found['logprobs'] == pytest.approx(behind['logprobs'], abs=1e-5)


def test_a_stop_is_a_whole_id(sample):
    shared = '--start=12 13', '--json=True', '--num_samples=1', '--max_new_tokens=60', '--temperature=9'
    tokens = objects(sample(*shared))[0]['tokens']
    stop = max(range(3), key=tokens.index)
    assert any(str(stop) in str(i) for i in tokens[:tokens.index(stop)]), 'or the test would say nothing'
    found, = objects(sample(*shared, f"--stop=['{stop}']"))
    assert found['finish_reason'] == 'stop' and ids_of(found['text']) == tokens[:tokens.index(stop)]
    done = sample(*shared, "--stop=['###']")
    assert done.returncode == 2 and 'the model knows the ids 0 to 24' in done.stderr and "'###'" in done.stderr
    done = sample(*shared, "--stop=[',']")
    assert done.returncode == 2 and "stop=[','] has a text without an id" in done.stderr


def test_what_is_no_id_is_told_in_a_line(sample):
    done = sample('--start=12 C# 25')
    assert done.returncode == 2 and done.stderr.count('\n') <= 2
    assert "the model knows the ids 0 to 24, with spaces between them, but not 'C#', '25'" in done.stderr


def test_a_chat_goes_on_with_ids(sample):
    done = ok(sample('--chat=True', '--seed=1', stdin='12 13\n\n15\n/top\nDo\n/save talk.json\n/bye\n'))
    answers = [line for line in done.stdout.splitlines() if re.fullmatch(r'(> )*( \d+){6}', line)]
    assert len(answers) == 2 and "but not 'Do'" in done.stdout and re.search(r"\d%  ' \d+' ", done.stdout)


def test_the_analysis_and_the_microscope_show_an_id_as_a_cell(sample, tmp_path):
    found, = objects(sample('--analyze=True', '--start=12, 13\n15', '--json=True'))
    assert [token['id'] for token in found['tokens']] == [12, 13, 15]
    assert [(piece['text'], piece['tokens']) for piece in found['pieces']] == [(' 12', 1), (' 13', 1), (' 15', 1)]
    assert found['bits_per_token'] > 0 and found['bits_per_byte'] is found['bits_per_character'] is None
    printed = ok(sample('--analyze=True', '--start=12 13')).stdout
    assert re.search(r'Perplexity [\d.]+ over 2 tokens: [\d.]+ bits a token; accuracy', printed)
    ok(sample('--analyze=True', '--start=12 13 15', '--html=page.html'))
    _, ((header, _),) = unpacked((tmp_path / 'page.html').read_text())
    assert header['pieces'] == [[' 12', 1], [' 13', 1], [' 15', 1]] and header['bits_per_byte'] is None
    assert header['texts']['13'] == ' 13'


# evaluate.py

def test_validation_data_are_scored_and_a_file_of_ids_too(use, melody, musician, tmp_path):
    own, = objects(use('evaluate.py', '--json=True', '--device=cpu'))
    assert own['tokens'] == 19_999 and own['loss'] < np.log(25) and own['bits_per_byte'] is own['bytes'] is None
    ids = np.fromfile(os.path.join(melody, 'val.bin'), np.uint16)[:16]
    (tmp_path / 'ids.txt').write_text('\n'.join(map(str, ids)) + '\n')
    found, = objects(use('evaluate.py', '--text=ids.txt', '--json=True', '--device=cpu'))
    idx = torch.tensor([[IdTokenizer.start_id, *ids.tolist()]])
    expected = GPT.from_checkpoint(musician).eval()(idx[:, :-1], idx[:, 1:])[1].item()
    assert found['loss'] == pytest.approx(expected, rel=1e-5)
    assert found['bits_per_byte'] is found['bytes'] is found['characters'] is None
    assert 'ids.txt: bits per byte not known, loss ' in ok(use('evaluate.py', '--text=ids.txt')).stdout


def test_questions_may_be_of_ids(use, tmp_path):
    rows = [{'query': '12 13', 'choices': ['14 15', '2 24'], 'gold': 0}, {'query': '20', 'choices': ['21', '3'],
                                                                         'gold': 0}]
    (tmp_path / 'mine.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert 'mine: accuracy 100.00%' in ok(use('evaluate.py', '--tasks=mine.jsonl')).stdout


def test_ids_are_not_encoded_in_another_vocabulary(run, use, melody, corpus_dir, trained, tmp_path):
    shutil.copytree(melody, tmp_path / 'other')
    meta = json.loads((tmp_path / 'other' / 'meta.json').read_text())
    (tmp_path / 'other' / 'meta.json').write_text(json.dumps({**meta, 'vocab_size': 40}))
    for done, theirs, ours in ((use('evaluate.py', f'--dataset={corpus_dir}'), r'\d+ ids \(char\)', r'25 \(ids\)'),
                               (use('evaluate.py', '--dataset=other'), r'40 ids \(ids\)', r'25 \(ids\)'),
                               (run('evaluate.py', f'--out_dir={trained}', f'--dataset={melody}'), r'25 ids \(ids\)',
                                r'\d+ \(char\)')):
        assert done.returncode == 2 and done.stdout == '', done.stderr
        assert re.search(f'has {theirs}, the model {ours}: ids that are no text mean nothing in another', done.stderr)


# export.py

@pytest.mark.parametrize('format', [slow('hf'), slow('onnx'), 'safetensors'])
def test_an_export_is_the_same_model_with_the_same_ids(use, run, tmp_path, format):
    for package in {'hf': ['transformers'], 'onnx': ['onnx', 'onnxscript', 'onnxruntime']}.get(format, []):
        pytest.importorskip(package)
    done = ok(use('export.py', f'--format={format}', '--to=exported'))
    assert 'greedy: ' in done.stdout
    if format == 'hf':
        assert 'tokenizer: the same 16 ids and text' in done.stdout
    if format == 'onnx':
        from tokenizers import Tokenizer
        assert Tokenizer.from_file(str(tmp_path / 'exported' / 'tokenizer.json')).encode('12, 5\n7').ids == [12, 5, 7]
    else:
        name = 'exported/model.safetensors' if format == 'safetensors' else 'exported'
        written = run('sample.py', f'--init_from={name}', '--start=12 13', '--num_samples=1', '--max_new_tokens=3')
        assert re.match(r'12 13( \d+){3}\n', ok(written).stdout)


def test_llama_cpp_has_no_such_tokenizer(use, tmp_path):
    pytest.importorskip('gguf')
    done = use('export.py', '--format=gguf', '--to=exported')
    assert done.returncode == 2 and 'llama.cpp has no tokenizer with the same ids' in done.stderr
    assert not (tmp_path / 'exported').exists()


# elsewhere

def test_two_vocabularies_of_ids_are_the_same_if_they_have_as_many():
    first, *others = (vocabulary(IdTokenizer(size)) for size in (25, 25, 30))
    assert [first == other for other in others] == [True, False]


def test_a_text_is_not_prepared_in_ids(run, melody, tmp_path):
    (tmp_path / 'a.txt').write_text('a text')
    done = run('data/text/prepare.py', '--input=a.txt', '--out=out', f'--tokenizer={melody}')
    assert done.returncode == 2 and f'--tokenizer={melody} has ids that are no text' in done.stderr


def test_the_check_of_a_dataset_shows_ids(run, melody):
    done = ok(run('data/corpus.py', 'check', melody))
    assert 'train has 180,000 tokens, the largest id is 24 of 25' in done.stdout
    assert re.search(r"from token [\d,]+ on: '\d+( \d+){99}'\n", done.stdout)
