"""
export.py as a user runs it, on small models of every vocabulary. What it writes is opened by the library that it is
for, and its own comparison must fail for a wrong export.
"""
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from common import checkpoint as checkpoint_file
from common import gguf_file
from common.exporting import modelcard
from common.tokenizer import GPT2Tokenizer, from_meta
from conftest import TOY, make_dataset, slow
from model import GPT, GPTConfig, load_weights
from running import ROOT, hook, ok, python

WORDS = 'the cat sees one bird. a dog hears that horse. my fish follows the cat. '


@pytest.fixture(scope='module')
def runs(tmp_path_factory, corpus_dir):
    """
    {name: out_dir} of small trained models: classic and modern on characters and with a BPE of their own, and classic
    with bounded logits. Those of the modern one on characters are bounded, too, and its smear is no longer near 0.
    """
    bpe_dir = tmp_path_factory.mktemp('bpe')
    make_dataset(bpe_dir, '\n\n'.join(40 * [WORDS]), '--vocab_size=300')
    place, found = tmp_path_factory.mktemp('runs'), {}
    for name, data, more in (('char', corpus_dir, ['--activation=gelu_tanh']), ('bpe', bpe_dir, ['--bias=True']),
                             ('modern', corpus_dir, ['--modern=True', '--softcap=3.0']),
                             ('modern bpe', bpe_dir, ['--modern=True']),
                             ('softcap', corpus_dir, ['--softcap=3.0', '--max_iters=1'])):
        ok(python(os.path.join(ROOT, 'train.py'), *TOY, f'--dataset={data}', f'--out_dir={name}', *more, cwd=place))
        found[name] = str(place / name)
    path = os.path.join(found['modern'], 'ckpt.pt')
    saved = torch.load(path, weights_only=True)
    saved['model']['smear'] += torch.tensor([[0.5], [-0.7], [0.9]])
    torch.save(saved, path)
    return found


@pytest.fixture(scope='module')
def openai_sized(tmp_path_factory):
    """A checkpoint file of a small random model with GPT-2's padded vocabulary; skips without that vocabulary."""
    if 'TIKTOKEN_CACHE_DIR' not in os.environ:
        pytest.skip("GPT-2's vocabulary is not here: TIKTOKEN_CACHE_DIR is not set")
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=50304, n_layer=1, n_head=2, n_embd=16, bias=False))
    path = tmp_path_factory.mktemp('gpt2') / 'ckpt.pt'
    torch.save({'model': model.state_dict(), 'model_args': vars(model.config), 'iter_num': 1, 'best_val_loss': 1.0,
                'config': {'dataset': 'openwebtext'}}, path)  # no meta, as from the original nanoGPT
    return str(path)


def export(run, *args):
    return ok(run('export.py', *args)).stdout


@pytest.mark.parametrize('name', ['char', slow('bpe'), 'modern', slow('modern bpe'), slow('softcap')])
def test_transformers_opens_what_was_exported_and_it_comes_back_unchanged(runs, run, tmp_path, name):
    transformers = pytest.importorskip('transformers')
    trust = {} if name in ('char', 'bpe') else dict(trust_remote_code=True)
    done = ok(run('export.py', f'--out_dir={runs[name]}', '--to=hf'))
    said = done.stdout
    assert 'tokens are the same' in said and 'differ by' in said and 'tokenizer: the same' in said
    assert 'deprecated' not in done.stderr and 'Warning' not in done.stderr
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf', **trust).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf', **trust)
    ours, checkpoint = load_weights(runs[name])
    ids = tokenizer(WORDS, return_tensors='pt').input_ids[:, :16]
    mine = from_meta(checkpoint['meta'])
    assert ids[0].tolist() == mine.encode(WORDS)[:16] and tokenizer.decode(ids[0]) == mine.decode(ids[0].tolist())
    logits = ours.eval()(ids, targets=ids)[0][..., :mine.vocab_size]
    assert theirs.config.vocab_size == mine.vocab_size and (theirs(ids).logits - logits).abs().max() < 1e-4
    back, source = load_weights(str(tmp_path / 'hf'))
    same = {key: value for key, value in vars(ours.config).items() if key not in ('bias', 'vocab_size')}
    assert source['meta'] == checkpoint['meta'] and vars(back.config).items() >= same.items()
    for key, value in back.state_dict().items():
        if key in ours.state_dict():
            assert torch.equal(value, ours.state_dict()[key][:len(value)]), key
        else:
            assert key.endswith('bias') and not value.any()
    card = (tmp_path / 'hf' / 'README.md').read_text()
    assert 'best validation loss' in card and 'learning_rate: 0.01' in card and 'pytest-' not in card
    assert ('trust_remote_code=True' in card) == ('Read it first' in card) == bool(trust)
    assert (tmp_path / 'hf' / 'modeling_nanogpt.py').exists() == bool(trust)
    if trust:
        with pytest.raises(ValueError, match='trust_remote_code=True'):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf', trust_remote_code=False)


@pytest.mark.parametrize('name', ['char', 'modern'])
def test_sample_and_train_take_what_was_exported(runs, run, tmp_path, corpus_dir, name):
    export(run, f'--out_dir={runs[name]}', '--to=hf', '--verify=False')
    ok(run('train.py', *TOY, f'--dataset={corpus_dir}', '--init_from=hf', '--out_dir=more', '--max_iters=1'))
    done = run('sample.py', '--init_from=hf', '--num_samples=1', '--max_new_tokens=5', '--start=the ', '--device=cpu')
    assert ok(done).stdout.startswith('the ')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['modern', 'bpe', 'softcap'])  # all but bpe in characters
def test_onnxruntime_computes_the_same_logits_whatever_the_shape(runs, run, tmp_path, name):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    said = export(run, f'--out_dir={runs[name]}', '--format=onnx', '--to=onnx')
    assert said.count('differ by') == 6 and '15 of 15 tokens are the same' in said
    model, checkpoint = load_weights(runs[name])
    c, vocab_size = model.config, checkpoint['meta']['vocab_size']
    session = onnxruntime.InferenceSession(tmp_path / 'onnx' / 'model.onnx')

    def feed(ids, *past):
        given = dict(zip(('input_ids', 'past_keys', 'past_values', 'past_embeddings'), (ids, *past)))
        outputs = session.run(None, {i.name: given[i.name].numpy() for i in session.get_inputs()})
        return [torch.from_numpy(output) for output in outputs]

    for batch, length in itertools.product((1, 3), (1, 7, 16)):
        ids = torch.randint(vocab_size, (batch, length))
        ours = model.eval()(ids, targets=ids)[0][..., :vocab_size].detach()
        keys = torch.zeros(c.n_layer, batch, c.n_head, 0, c.n_embd // c.n_head)
        assert (c.softcap > 0) == (name != 'bpe') and (not c.softcap or ours.abs().max() < c.softcap)
        for piece in (1, 2, 5, 16):  # so many tokens at a time, by the cache
            past = keys, keys, torch.zeros(batch, 3, c.n_embd)
            for part, expected in zip(ids.split(piece, dim=1), ours.split(piece, dim=1)):
                logits, *past = feed(part, *past)
                assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize('name', ['bpe', 'modern', 'softcap'])
def test_safetensors_come_back_to_the_bit(runs, run, tmp_path, name):
    export(run, f'--out_dir={runs[name]}', '--format=safetensors', '--to=st')
    theirs, ours = (GPT.from_checkpoint(source) for source in (str(tmp_path / 'st' / 'model.safetensors'), runs[name]))
    assert theirs.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())
    export(run, '--init_from=st', '--format=safetensors', '--to=again')
    assert (tmp_path / 'again' / 'README.md').exists()


@pytest.mark.slow
def test_gpt2s_vocabulary_loses_its_padding_and_keeps_its_ids(openai_sized, run, tmp_path):
    transformers = pytest.importorskip('transformers')
    export(run, f'--init_from={openai_sized}', '--to=hf')
    pytest.importorskip('onnxscript')
    assert 'tokens are the same' in export(run, f'--init_from={openai_sized}', '--format=onnx', '--to=onnx')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    text = "It's  12 o'clock\n\n— naïve 漢字 🙂<|endoftext|>"
    assert tokenizer(text).input_ids == GPT2Tokenizer().encode(text)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    weights = load_weights(str(tmp_path / 'hf'))[0].transformer.wte.weight
    assert weights.size(0) == 50257
    assert torch.equal(weights, torch.load(openai_sized)['model']['transformer.wte.weight'][:50257])


def test_the_names_and_shapes_are_those_that_gguf_knows(runs, run, tmp_path):
    """Those that llama.cpp's converter looks up, in its own table."""
    gguf = pytest.importorskip('gguf')
    from safetensors import safe_open
    export(run, f'--out_dir={runs["bpe"]}', '--to=hf', '--verify=False')
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)
    with safe_open(tmp_path / 'hf' / 'model.safetensors', 'pt') as f:
        shapes = {names.get_name(key, try_suffixes=('.weight', '.bias')): f.get_slice(key).get_shape()
                  for key in f.keys()}
    assert None not in shapes and len(shapes) == 2 * 12 + 4
    assert shapes['blk.0.attn_qkv.weight'] == [32, 96] and shapes['token_embd.weight'][1] == 32
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert config['n_ctx'] == 16  # the converter needs it
    tokens = json.loads((tmp_path / 'hf' / 'tokenizer.json').read_text())['model']['vocab']
    assert shapes['token_embd.weight'][0] == config['vocab_size'] == len(tokens)


@pytest.mark.parametrize('name', ['char', 'bpe'])
def test_llama_cpp_computes_the_same_and_says_what_it_does_otherwise(runs, run, tmp_path, name):
    pytest.importorskip('gguf')
    pytest.importorskip('llama_cpp')
    said = export(run, f'--out_dir={runs[name]}', '--format=gguf', '--to=gguf')
    assert said.count('differ by') == 6 and '15 of 15 tokens are the same' in said and 'tokenizer: the same' in said
    line, card = 'llama.cpp computes GELU by the tanh approximation', (tmp_path / 'gguf' / 'README.md').read_text()
    assert (line in said) == (line in card) == (name == 'bpe')
    assert sorted(os.listdir(tmp_path / 'gguf')) == ['README.md', 'model.gguf']


@pytest.mark.parametrize('kind, reason', [
    ('missing', 'llama_cpp is not installed; pip install llama-cpp-python builds it'),
    ("RuntimeError('Failed to load shared library')", '(RuntimeError: Failed to load shared library)'),
    ("FileNotFoundError('no libllama.so')", '(FileNotFoundError: no libllama.so)'),
    ("ModuleNotFoundError('no diskcache', name='diskcache')", '(ModuleNotFoundError: no diskcache)')])
def test_without_a_working_llama_cpp_a_gguf_is_written_and_called_unverified(runs, hooked_export, tmp_path, kind,
                                                                            reason):
    pytest.importorskip('gguf')
    (tmp_path / 'fake').mkdir()
    (tmp_path / 'fake' / 'llama_cpp.py').write_text(f'raise {kind}')
    code = "sys.modules['llama_cpp'] = None" if kind == 'missing' else "sys.path.insert(0, 'fake')"
    done = ok(hooked_export(code, f'--out_dir={runs["char"]}', '--format=gguf', '--to=gguf'))
    said, = (line for line in done.stdout.splitlines() if line.startswith('not verified: '))
    assert reason in said and 'differ by' not in done.stdout and 'NOT THE SAME' not in done.stderr
    assert (tmp_path / 'gguf' / 'model.gguf').exists()


@pytest.mark.parametrize('name, kind', [('modern', 'a modern model'), ('softcap', 'a model with softcap=3.0')])
def test_what_is_no_gpt2_is_no_gguf_and_refused_before_any_package_is_asked_for(runs, hooked_export, tmp_path, name,
                                                                                kind):
    done = hooked_export('import importlib.util; importlib.util.find_spec = lambda name, *_: None',
                         f'--out_dir={runs[name]}', '--format=gguf', '--to=out')
    line = done.stderr.splitlines()[-1]  # the one before says which weights they are
    assert done.returncode == 2 and line.startswith(f'export.py: {kind} fits no architecture of llama.cpp'), done.stderr
    assert line.endswith('; the other formats take it') and 'Traceback' not in done.stderr
    assert 'pip install' not in done.stderr and os.listdir(tmp_path) == []


@pytest.mark.parametrize('changes, kind', [(dict(modern=True), 'a modern model'), (dict(softcap=3.0), 'a softcap')])
def test_no_gguf_is_written_of_what_is_no_gpt2(tmp_path, changes, kind):
    """As bench.py writes one, without a tokenizer."""
    model = GPT(GPTConfig(block_size=8, vocab_size=3, n_layer=1, n_head=1, n_embd=4, **changes))
    with pytest.raises(ValueError, match=kind):
        gguf_file.write(model, None, tmp_path / 'model.gguf')
    assert os.listdir(tmp_path) == []


def test_llama_cpps_own_converter_takes_the_folder(run, tmp_path):
    """LLAMA_CPP names the folder of llama.cpp's source; what its converter makes of an hf export writes the same."""
    pytest.importorskip('llama_cpp')
    pytest.importorskip('transformers')
    converter = os.path.join(os.environ.get('LLAMA_CPP', ''), 'convert_hf_to_gguf.py')
    if not os.path.isfile(converter) or 'TIKTOKEN_CACHE_DIR' not in os.environ:
        pytest.skip('no convert_hf_to_gguf.py in LLAMA_CPP, or no vocabulary in TIKTOKEN_CACHE_DIR')
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=32, activation='gelu_tanh')).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))  # so that no two tokens are nearly as likely
    torch.save({'model': model.state_dict(), 'model_args': vars(model.config), 'iter_num': 1, 'best_val_loss': 1.0,
                'config': {'dataset': 'openwebtext'}}, tmp_path / 'ckpt.pt')
    export(run, '--init_from=ckpt.pt', '--to=hf', '--verify=False')
    done = subprocess.run([sys.executable, converter, 'hf', '--outfile=theirs.gguf', '--outtype=f32'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = "Once upon a time,\n\n we'll see 漢字"
    theirs = gguf_file.Session(str(tmp_path / 'theirs.gguf'), model.config)
    ids = torch.tensor([GPT2Tokenizer().encode(text)])
    assert theirs.tokens(text) == (ids[0].tolist(), text, GPT2Tokenizer.end_id)
    ours = model.generate(ids, 40, temperature=0.0, vocab_size=50257)[0].tolist()
    assert theirs.greedy(ids, 40) == ours and len(set(ours)) > 10


# a transposed projection, and a token that sees too much of those before it
BREAK = '''
from common import gguf_file, weights
from common.exporting import onnx_graph, transformers_folder
tensors = gguf_file.tensors
gguf_file.tensors = lambda *args: ((name, value.t().contiguous() if name == 'blk.1.attn_output.weight' else value)
                                   for name, value in tensors(*args))
previous = onnx_graph.Past.after_previous
def broken(write):
    return lambda model, vocab_size: (
        (name, value.t().contiguous() if name == 'transformer.h.1.attn.c_proj.weight' else value)
        for name, value in write(model, vocab_size))
weights.gpt2_weights = broken(weights.gpt2_weights)
transformers_folder.own_weights = broken(transformers_folder.own_weights)
onnx_graph.Past.after_previous = lambda self, x, count: previous(self, x, count) * 1.01
'''
SHUFFLE = '''
from common.tokenizer import CharTokenizer
to_json = CharTokenizer.to_json
CharTokenizer.to_json = lambda self: to_json(CharTokenizer(self.chars[::-1]))
from common import gguf_file
char_tokens = gguf_file.char_tokens
gguf_file.char_tokens = lambda tokenizer: char_tokens(tokenizer)[::-1]
'''


@pytest.fixture
def hooked_export(tmp_path):
    return lambda code, *args: hook(code, 'export.py', *args, cwd=tmp_path)


@pytest.mark.parametrize('name, format, code', [('char', 'hf', BREAK), slow('modern', 'hf', BREAK),
                                                slow('modern', 'onnx', BREAK), slow('char', 'hf', SHUFFLE),
                                                ('char', 'gguf', BREAK), ('char', 'gguf', SHUFFLE)],
                         ids=['hf', 'hf with its own code', 'onnx', 'tokenizer', 'gguf', 'tokenizer of gguf'])
def test_a_wrong_export_is_found_out(runs, hooked_export, tmp_path, name, format, code):
    pytest.importorskip({'hf': 'transformers', 'onnx': 'onnxscript', 'gguf': 'llama_cpp'}[format])
    done = hooked_export(code, f'--out_dir={runs[name]}', f'--format={format}', '--to=out')
    assert done.returncode == 1 and 'NOT THE SAME MODEL' in done.stderr, done.stdout + done.stderr
    assert ('NOT the same' if code == SHUFFLE else 'in the logit of id') in done.stdout and os.listdir(tmp_path / 'out')


@pytest.mark.parametrize('args, expected', [
    (['--out_dir=none'], "no folder 'none' with a trained model"),
    (['--out_dir={char}/ckpt.pt'], 'with a trained model here; did you mean --init_from={char}/ckpt.pt?'),
    (['--format=ggml'], "format='ggml' is not one of hf, onnx, safetensors, gguf"),
    (['--init_from={modern}/ckpt.pt', '--format=gguf'], 'no architecture of llama.cpp'),
    (['--out_dir={char}', '--to=full'], 'full is not an empty folder'),
    (['--out_dir={char}', '--to=full/file'], 'file is not an empty folder'),
    (['--out_dri=x'], 'did you mean out_dir')])
def test_a_mistake_is_one_line_and_writes_nothing(runs, run, tmp_path, args, expected):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').write_text('')
    done = run('export.py', *(arg.format(**runs) for arg in args))
    assert done.returncode == 2 and expected.format(**runs) in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert os.listdir(tmp_path) == ['full'] and os.listdir(tmp_path / 'full') == ['file']


def change(*keys, value):
    """A function that sets checkpoint[key][key]... to a value."""
    def act(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value
    return act


FOREIGN = {
    'meta is a str': change('meta', value='char'), 'no vocab_size': lambda saved: saved['meta'].pop('vocab_size'),
    'no chars': lambda saved: saved['meta'].pop('chars'), 'too few chars': change('meta', 'chars', value=['a', 'b']),
    'vocab_size is a str': change('meta', 'vocab_size', value='5'),
    'a vocabulary of 10 billion': change('model_args', 'vocab_size', value=10**10),
    'no heads': change('model_args', 'n_head', value=0), 'odd heads': change('model_args', 'n_head', value=3),
    'fewer layers': change('model_args', 'n_layer', value=1), 'model is a str': change('model', value='gpt2'),
    'model_args is a str': change('model_args', value='gpt2'), 'config is a list': change('config', value=[1]),
    'no dataset and no meta': lambda saved: saved.update(meta=None, config={'dataset': 5}),
    'a loss that is a str': change('best_val_loss', value='low'),
    'an untied head': lambda saved: saved['model'].update(
        {'lm_head.weight': saved['model']['transformer.wte.weight'] + 1}),
    'weights that are not finite': lambda saved: saved['model']['transformer.ln_f.weight'].fill_(torch.nan)}


@pytest.mark.parametrize('kind', FOREIGN)
def test_a_foreign_checkpoint_is_one_line_and_writes_nothing(runs, run, tmp_path, kind):
    saved = torch.load(os.path.join(runs['char'], 'ckpt.pt'), weights_only=True)
    FOREIGN[kind](saved)
    torch.save(saved, tmp_path / 'foreign.pt')
    done = run('export.py', '--init_from=foreign.pt', '--format=safetensors')
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert os.listdir(tmp_path) == ['foreign.pt']


@pytest.mark.parametrize('config', [{}, {'dataset': 5}, {'dataset': ['a'], 'seed': {'a': 1}, 'optimizer': None, 7: 8}])
def test_settings_of_another_program_are_no_obstacle(runs, run, tmp_path, config):
    saved = torch.load(os.path.join(runs['char'], 'ckpt.pt'), weights_only=True)
    saved['config'] = config
    saved['meta'].update(source=['a', 5])
    del saved['meta']['train_tokens']
    torch.save(saved, tmp_path / 'theirs.pt')
    export(run, '--init_from=theirs.pt', '--format=safetensors')
    card = (tmp_path / 'theirs-safetensors' / 'README.md').read_text()
    assert '# theirs.pt' in card and ('- data: ' in card) == bool(config)


def test_output_that_cannot_be_written_is_no_failure_of_an_export(runs, hooked_export, tmp_path):
    closed = 'os.close(1); os.close(2); sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None'
    for i, code in enumerate(('os.dup2(os.open("/dev/full", os.O_WRONLY), 1)', closed)):
        ok(hooked_export(code, f'--out_dir={runs["char"]}', '--format=safetensors', f'--to={i}'))
        assert sorted(os.listdir(tmp_path / str(i))) == ['README.md', 'model.safetensors']


def test_a_place_that_cannot_be_written_is_named_before_the_work(runs, hooked_export, tmp_path):
    (tmp_path / 'link').symlink_to('gone')
    args = f'--init_from={runs["char"]}', '--format=safetensors'
    for to, code, expected in (('link', '', 'link is a link to'), ('link/x', '', "to='link/x'"),
                               ('x', 'os.access = lambda path, mode: False', '--to=FOLDER names another one')):
        done = hooked_export(code, *args, f'--to={to}')
        assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert os.listdir(tmp_path) == ['link']
    ok(hooked_export('os.environ["HOME"] = os.getcwd()', *args, '--to=~/x'))
    assert (tmp_path / 'x' / 'model.safetensors').exists()


def test_a_missing_package_is_named_and_so_is_a_small_disk(runs, hooked_export, tmp_path):
    missing = '''
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == 'onnxruntime' else find(name, *more)
'''
    done = hooked_export(missing, f'--out_dir={runs["char"]}', '--format=onnx')
    assert done.returncode == 2 and 'pip install onnxruntime' in done.stderr
    small = 'import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10, 9, 1)'
    done = hooked_export(small, f'--out_dir={runs["char"]}', '--format=safetensors', '--to=st')
    assert done.returncode == 2 and 'its disk has 0 MB free' in done.stderr and not (tmp_path / 'st').exists()


def test_a_damaged_or_foreign_safetensors_file_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(1)}, tmp_path / 'foreign.safetensors')
    (tmp_path / 'damaged.safetensors').write_bytes(b'\0' * 100)
    for name, reason in (('foreign', 'was not written by export.py'), ('damaged', 'invalid JSON in header')):
        with pytest.raises(ValueError, match=f'is damaged or not a checkpoint.*{reason}'):
            checkpoint_file.load(str(tmp_path / f'{name}.safetensors'))


@pytest.mark.parametrize('name', ['bpe', 'modern bpe'])
def test_the_folder_runs_in_the_evaluation_harness(runs, run, tmp_path, name):
    """EleutherAI's lm_eval on a task made of local files: which of two endings is likelier."""
    pytest.importorskip('lm_eval')
    export(run, f'--out_dir={runs[name]}', '--to=hf', '--verify=False')
    questions = [('the cat', [' sees one', ' hears my'], 0), ('a dog', [' sees one', ' hears that'], 1),
                 ('my fish', [' follows the', ' sees that'], 0), ('that', [' horse', ' bird'], 1)]
    rows = [dict(query=query, choices=choices, gold=gold) for query, choices, gold in questions]
    (tmp_path / 'endings.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    (tmp_path / 'endings.yaml').write_text(f'''task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/endings.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}]
''')
    model_args = 'pretrained=hf,dtype=float32' + ',trust_remote_code=True' * (name == 'modern bpe')
    ok(python('-m', 'lm_eval', '--model', 'hf', '--model_args', model_args, '--tasks', 'endings',
              '--include_path', '.', '--device', 'cpu', '--output_path', 'results', '--batch_size', '2',
              cwd=tmp_path, HF_DATASETS_OFFLINE='1', HF_HOME=str(tmp_path / 'cache')))
    found = json.loads(next((tmp_path / 'results').rglob('results_*.json')).read_text())['results']['endings']
    model, checkpoint = load_weights(runs[name])
    tokenizer = from_meta(checkpoint['meta'])

    def likelihood(query, ending):
        before, ids = tokenizer.encode(query), tokenizer.encode(query + ending)
        logprobs = model.eval()(torch.tensor([ids]), targets=torch.tensor([ids]))[0][0].log_softmax(dim=-1)
        return sum(logprobs[i - 1, ids[i]].item() for i in range(len(before), len(ids)))

    right = [likelihood(query, choices[gold]) > likelihood(query, choices[1 - gold])
             for query, choices, gold in questions]
    assert found['acc,none'] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize('format', ['hf', 'safetensors', slow('onnx'), 'gguf'])
@pytest.mark.parametrize('name', ['char', slow('bpe'), slow('modern')])
def test_the_code_on_the_card_runs(runs, run, tmp_path, monkeypatch, capsys, name, format):
    if name == 'modern' and format == 'gguf':
        return  # no such export
    for package in {'hf': ['transformers'], 'onnx': ['onnxscript', 'onnxruntime'],
                    'gguf': ['gguf', 'llama_cpp']}.get(format, []):
        pytest.importorskip(package)
    export(run, f'--out_dir={runs[name]}', f'--format={format}', "--to=it's mine", '--verify=False')
    monkeypatch.chdir(tmp_path)
    exec((tmp_path / "it's mine" / 'README.md').read_text().split('```')[1].removeprefix('python\n'), {})


@pytest.mark.parametrize('block_size', [1, 2, 8])
def test_the_card_asks_for_no_more_tokens_than_the_context_holds(tmp_path, block_size):
    tokenizer = from_meta({'tokenizer': 'char', 'vocab_size': 3, 'chars': 'abc'})
    config = GPTConfig(block_size=block_size, vocab_size=3, n_layer=1, n_head=1, n_embd=4)
    about = {'meta': {}}
    modelcard.write(tmp_path, 'there', 'hf', config, about, tokenizer, [0, 1, 2, 0, 1, 2, 0, 1], 'run')
    card = (tmp_path / 'README.md').read_text()
    new, prompt = int(re.search(r'max_new_tokens=(-?\d+)', card)[1]), re.search(r"tokenizer\('(.*?)'", card)[1]
    assert new >= 1 and len(prompt) >= 1 and len(prompt) + new <= max(2, block_size)


def test_the_card_names_the_bound_of_the_logits(tmp_path):
    tokenizer = from_meta({'tokenizer': 'char', 'vocab_size': 3, 'chars': 'abc'})
    for softcap, said in ((0.0, 'a context of 8 tokens, in float32'),
                          (15.0, 'a context of 8 tokens, logits bounded to 15 by tanh, in float32')):
        config = GPTConfig(block_size=8, vocab_size=3, n_layer=1, n_head=1, n_embd=4, softcap=softcap)
        modelcard.write(tmp_path, 'there', 'onnx', config, {'meta': {}}, tokenizer, [0, 1, 2], 'run')
        assert said in (tmp_path / 'README.md').read_text()


def test_the_card_of_a_gguf_says_what_llama_cpp_does_otherwise_and_what_to_install(tmp_path):
    tokenizer = from_meta({'tokenizer': 'char', 'vocab_size': 3, 'chars': 'abé'})
    config = GPTConfig(block_size=8, vocab_size=3, n_layer=1, n_head=1, n_embd=4)
    modelcard.write(tmp_path, 'there', 'gguf', config, {'meta': {}}, tokenizer, [0, 1, 2], 'run')
    card, lines = (tmp_path / 'README.md').read_text(), list(gguf_file.differences(config, tokenizer))
    assert len(lines) == 2 and all(line in card for line in lines) and 'pip install llama-cpp-python' in card


def test_an_export_touches_no_folder_of_the_user(runs, run, tmp_path):
    precious = tmp_path / 'mine.partial' / 'thesis.txt'
    precious.parent.mkdir()
    precious.write_text('precious')
    export(run, f'--out_dir={runs["char"]}', '--format=safetensors', '--to=mine')
    assert precious.read_text() == 'precious'
    assert sorted(os.listdir(tmp_path)) == ['mine', 'mine.partial']


def test_of_two_exports_to_one_folder_the_second_says_so_and_leaves_nothing(runs, hooked_export, tmp_path):
    meanwhile = """
from common.exporting import modelcard
write = modelcard.write
def slow_write(*args):
    os.makedirs('mine')
    open('mine/theirs', 'w').close()
    write(*args)
modelcard.write = slow_write
"""
    done = hooked_export(meanwhile, f'--out_dir={runs["char"]}', '--format=safetensors', '--to=mine')
    assert done.returncode == 2 and 'mine is not an empty folder' in done.stderr
    assert os.listdir(tmp_path) == ['mine'] and os.listdir(tmp_path / 'mine') == ['theirs']


def test_what_a_killed_export_has_left_is_named(runs, hooked_export, tmp_path):
    die = """
import signal
from common.exporting import modelcard
modelcard.write = lambda *args: os.kill(os.getpid(), signal.%s)
"""
    args = f'--out_dir={runs["char"]}', '--format=safetensors', '--to=mine'
    assert hooked_export(die % 'SIGTERM', *args).returncode == 143 and os.listdir(tmp_path) == []
    assert hooked_export(die % 'SIGKILL', *args).returncode == -9
    left, = os.listdir(tmp_path)
    assert f'{left} is what an export that was killed has left' in ok(hooked_export('', *args)).stdout
    assert sorted(os.listdir(tmp_path)) == ['mine', left]


def test_an_export_is_for_those_whom_the_umask_allows(runs, hooked_export, tmp_path):
    ok(hooked_export('os.umask(0o027)', f'--out_dir={runs["char"]}', '--format=safetensors', '--to=mine'))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / 'mine', *(tmp_path / 'mine').iterdir())}
    assert modes == {'mine': 0o750, 'model.safetensors': 0o640, 'README.md': 0o640}
