"""EleutherAI's lm_eval with a model of this project: what evaluate.py says, and what Hugging Face's model says."""
import json
import math
import os
import random
import re

import pytest
import torch

from common import generate
from common.tokenizer import from_meta
from conftest import TOY, make_dataset
from model import load_weights
from running import ROOT, ok, python

WORDS = 'the cat sees one bird a dog hears that horse my fish follows likes'.split()
YAML = '''task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{file}.jsonl}}}}
test_split: test
fewshot_split: test
output_type: {kind}
{more}
'''
CHOICES = '''doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]'''
ENDINGS = '''doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc}]'''
ROLLING = '''doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]'''
WRITING = '''doc_to_text: "{{query}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: [".", "m", " zz"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a small trained model in out/, exported to hf/, and lm_eval's tasks on local files."""
    pytest.importorskip('lm_eval')
    pytest.importorskip('datasets')
    pytest.importorskip('transformers')
    folder, rng = tmp_path_factory.mktemp('harness'), random.Random(0)
    text = '\n\n'.join(f'{" ".join(rng.choice(WORDS) for _ in range(30))}.' for _ in range(200))
    (folder / 'data').mkdir()
    data = make_dataset(folder / 'data', text, '--vocab_size=300')
    ok(python(os.path.join(ROOT, 'train.py'), *TOY, f'--dataset={data}', '--bias=True', '--block_size=256',
              '--out_dir=out', cwd=folder))
    ok(python(os.path.join(ROOT, 'export.py'), '--out_dir=out', '--to=hf', '--verify=False', cwd=folder))

    def some(count):
        return ' '.join(rng.choice(WORDS) for _ in range(count))
    questions = [dict(query=some(rng.randrange(1, 9)) + rng.choice(['', ' ']), gold=i % 2,
                      choices=[some(rng.randrange(1, 4)) for _ in range(2 + i % 3)]) for i in range(30)]
    questions[3]['query'] = ''
    words = [dict(text=some(rng.randrange(2, 9))) for _ in range(30)]
    texts = [dict(text=some(rng.choice([5, 300]))) for _ in range(4)]  # some longer than the context
    for name, rows in (('ends', questions), ('words', words), ('texts', texts)):
        (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    for name, file, kind, more in (('ends', 'ends', 'multiple_choice', CHOICES),
                                   ('words', 'words', 'loglikelihood', ENDINGS),
                                   ('texts', 'texts', 'loglikelihood_rolling', ROLLING),
                                   ('writing', 'ends', 'generate_until', WRITING)):
        (folder / f'{name}.yaml').write_text(YAML.format(name=name, file=file, kind=kind, more=more, folder=folder))
    return folder


@pytest.fixture(scope='module')
def evaluated(folder):
    """evaluated(model, tasks, shots): what lm_eval finds, {task: its figures}, and its notes, {task: [...]}."""
    lm_eval, cwd = pytest.importorskip('lm_eval'), os.getcwd()
    from lm_eval.tasks import TaskManager
    import harness
    os.chdir(folder)  # where `out` and `hf` are
    models = {'nanogpt': lambda: harness.NanoGPT(out_dir='out', device='cpu', dtype='float32'),
              'hf': lambda: lm_eval.api.registry.get_model('hf')(
                  pretrained='hf', dtype='float32', device='cpu', max_length=256, batch_size=4)}
    made = {}

    def run(model, tasks, shots=None):
        made[model] = made.get(model) or models[model]()
        found = lm_eval.simple_evaluate(made[model], tasks=tasks.split(','), num_fewshot=shots, bootstrap_iters=10,
                                        task_manager=TaskManager(include_path='.', include_defaults=False))
        return found['results'], found['samples']
    yield run
    os.chdir(cwd)


TASKS = 'ends,words,texts,writing'


@pytest.fixture(scope='module')
def ours(evaluated):
    return evaluated('nanogpt', TASKS)


@pytest.fixture(scope='module')
def theirs(evaluated):
    """By lm_eval's own code, on Hugging Face's model with the exported weights."""
    return evaluated('hf', TASKS)


def assert_same(ours, theirs):
    assert {key for key in ours if 'stderr' not in key} == {key for key in theirs if 'stderr' not in key}
    for key, value in ours.items():
        if not isinstance(value, str):
            assert value == pytest.approx(theirs[key], rel=1e-4), key


@pytest.mark.parametrize('task', TASKS.split(','))
def test_the_figures_are_those_of_hugging_faces_model(ours, theirs, task):
    figures, samples = zip(ours, theirs)
    keys = {'ends': 'acc_norm,none', 'words': 'perplexity,none', 'texts': 'bits_per_byte,none',
            'writing': 'exact_match,none'}
    assert keys[task] in figures[0][task]
    assert_same(*({key: value for key, value in found[task].items() if 'perplexity_stderr' not in key
                   and 'bits_per_byte_stderr' not in key} for found in figures))  # by a bootstrap
    assert len(samples[0][task]) == len(samples[1][task]) > 0
    for one, other in zip(*(sorted(found[task], key=lambda row: row['doc_id']) for found in samples)):
        for (mine,), (other_one,) in zip(one['resps'], other['resps'], strict=True):
            if task == 'writing':  # the two show bytes that are no character in different ways
                assert re.sub(r'(\\x[0-9a-f]{2})+', '\ufffd', mine) == re.sub('\ufffd+', '\ufffd', other_one)
            else:
                pairs = [(mine, other_one)] if task == 'texts' else zip(mine, other_one)
                assert all(str(a) == str(b) or float(a) == pytest.approx(float(b), abs=2e-3) for a, b in pairs)


@pytest.mark.parametrize('task', ['ends', 'words'])
def test_evaluate_finds_what_lm_eval_finds(folder, ours, task):
    done = python(os.path.join(ROOT, 'evaluate.py'), '--out_dir=out', f'--tasks={task}.jsonl', '--device=cpu',
                  '--json=True', cwd=folder)
    found, expected = json.loads(ok(done).stdout), ours[0][task]
    keys = {'ends': ['acc', 'acc_norm', 'acc_stderr', 'acc_norm_stderr'], 'words': ['acc', 'acc_stderr', 'perplexity']}
    for key in keys[task]:
        name, _, error = key.partition('_stderr')
        theirs = expected[f'{name}_stderr,none' if key.endswith('_stderr') else f'{name},none']
        assert found[key] == pytest.approx(theirs, rel=1e-4), key
    assert found['questions'] == 30 and found['too_long'] == 0 and 0 < found['acc'] < 1


@pytest.mark.parametrize('model', ['nanogpt', 'hf'])
def test_with_examples_evaluate_finds_the_same(folder, evaluated, model):
    done = python(os.path.join(ROOT, 'evaluate.py'), '--out_dir=out', '--tasks=ends.jsonl', '--device=cpu',
                  '--json=True', '--shots=2', cwd=folder)
    found, expected = json.loads(ok(done).stdout), evaluated(model, 'ends', 2)[0]['ends']
    assert found['too_long'] == 0 and found['questions'] == 30
    for key in ('acc', 'acc_norm'):
        assert found[key] == pytest.approx(expected[f'{key},none'])
        assert found[f'{key}_stderr'] == pytest.approx(expected[f'{key}_stderr,none'])


def test_rolling_perplexity_is_that_of_windows_of_the_whole_context(folder, ours):
    """Each of a text's tokens once; the last window goes back as far as it can, as lm_eval's does."""
    model, checkpoint = load_weights(str(folder / 'out'))
    tokenizer, total, size = from_meta(checkpoint['meta']), 0.0, 256
    rows = [json.loads(line)['text'] for line in (folder / 'texts.jsonl').read_text().splitlines()]
    for text in rows:
        ids = [tokenizer.end_id] + tokenizer.encode(text)
        for begin in range(0, len(ids) - 1, size):
            last = min(begin + size, len(ids) - 1)
            first = max(0, last - size)
            x, y = torch.tensor([ids[first:last]]), torch.tensor([ids[first + 1:last + 1]])
            with torch.no_grad():
                logits = model.eval()(x, y)[0][0, :, :tokenizer.vocab_size]
            each = torch.nn.functional.cross_entropy(logits, y[0], reduction='none')
            total += each[begin - first:].sum().item()
    size_in_bytes = sum(len(text.encode()) for text in rows)
    assert ours[0]['texts']['bits_per_byte,none'] == pytest.approx(total / math.log(2) / size_in_bytes, rel=1e-4)


def test_what_it_writes_is_the_greedy_continuation_up_to_a_stop(folder, ours):
    model, checkpoint = load_weights(str(folder / 'out'))
    tokenizer, stopped = from_meta(checkpoint['meta']), []
    for row in ours[1]['writing']:
        ids = tokenizer.encode(row['doc']['query']) or [tokenizer.end_id]
        whole = generate.generate(model.eval(), torch.tensor([ids]), 12, temperature=0.0,
                                  vocab_size=tokenizer.vocab_size)
        new = whole[0, len(ids):].tolist()
        new = new[:new.index(tokenizer.end_id)] if tokenizer.end_id in new else new
        text = tokenizer.decode(new)
        assert row['resps'] == [[re.split('[.m]', text)[0]]]
        stopped.append('m' in text)
    assert any(stopped), 'or nothing is tested'


@pytest.mark.slow
def test_the_command_line_is_that_of_lm_eval_with_one_model_more(folder, ours):
    command = [os.path.join(ROOT, 'harness.py'), '--model', 'nanogpt', '--tasks', 'ends', '--include_path', '.']
    done = ok(python(*command, '--model_args', 'out_dir=out,dtype=float32', '--output_path', 'results', cwd=folder))
    found = json.loads(next((folder / 'results').rglob('results_*.json')).read_text())['results']['ends']
    assert found['acc,none'] == pytest.approx(ours[0]['ends']['acc,none']) and '|acc_norm|' in done.stdout
    done = python(*command, '--model_args', 'out_dir=gone', '--output_path', 'none', cwd=folder)
    assert done.returncode == 2 and "\nharness.py: no folder 'gone' with a trained model here; " in done.stderr
    assert 'Traceback' not in done.stderr and not os.path.exists(folder / 'none')


@pytest.mark.parametrize('given, expected', [
    (dict(out_dir='none'), "no folder 'none' with a trained model here; out_dir=FOLDER names one"),
    (dict(out_dir='gpt2'), "no folder 'gpt2' with a trained model here; did you mean init_from=gpt2?"),
    (dict(out_dir='out/ckpt.pt'), 'did you mean init_from=out/ckpt.pt?'),
    (dict(model='gpt2'), 'unknown setting model in model_args; did you mean init_from?'),
    (dict(nothing=1), "unknown setting nothing in model_args; there are out_dir, init_from, dtype")])
def test_a_model_that_is_named_wrongly_leads_to_the_right_name(evaluated, given, expected):
    import harness
    with pytest.raises(ValueError, match=re.escape(expected)):
        harness.NanoGPT(**given)


def test_the_models_of_lm_eval_stay_known(evaluated):
    from lm_eval.api.registry import get_model
    assert get_model('dummy').__name__ == 'DummyLM' and get_model('nanogpt').__name__ == 'NanoGPT'
