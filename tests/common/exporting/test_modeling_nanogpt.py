"""
The code that an export for transformers brings along, on random models: whatever transformers does with it must give
what model.py does.
"""
import ast
import copy
import importlib
import inspect
import os
import warnings

import pytest
import torch
from torch.nn import functional as F

import model
from common import generate, weights
from common.exporting import transformers_folder
from common.tokenizer import from_meta, train_bpe
from model import GPT, GPTConfig
from running import ROOT

transformers = pytest.importorskip('transformers')
modeling_nanogpt = importlib.import_module('common.exporting.modeling_nanogpt')
CACHE = modeling_nanogpt.CACHE

TEXT = 'the cat sees one bird. a dog hears that horse.'
CHARS = {'tokenizer': 'char', 'vocab_size': 15, 'chars': ''.join(sorted(set(TEXT)))}
BPE = {'tokenizer': 'bpe', 'vocab_size': 280, 'tokenizer_json': train_bpe(20 * [TEXT], 280)}
KINDS = {'modern': (CHARS, dict(modern=True)), 'modern, bounded': (BPE, dict(modern=True, softcap=3.0)),
         'classic, bounded': (CHARS, dict(softcap=3.0)),
         'classic, bounded, without biases': (BPE, dict(softcap=3.0, bias=False, activation='gelu_tanh'))}
AUTO = dict(trust_remote_code=True)


class Pair:
    """A random model of ours, and what transformers makes of its export."""

    def __init__(self, folder, meta, changes):
        torch.manual_seed(0)
        self.meta, self.folder, self.tokenizer = meta, folder, from_meta(meta)
        self.V = self.tokenizer.vocab_size
        config = GPTConfig(block_size=32, vocab_size=self.V + 5, n_layer=2, n_head=2, n_embd=32, **changes)
        self.ours = GPT(config).eval().requires_grad_(False)
        for p in self.ours.parameters():
            p.add_(0.2 * torch.randn_like(p))
        if config.modern:
            self.ours.smear.add_(torch.tensor([[0.5], [-0.7], [0.9]]))
        transformers_folder.write(self.ours, self.tokenizer, meta, folder)
        self.theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, **AUTO).eval()
        self.ids = torch.randint(self.V, (3, 24))

    def logits(self, ids, **more):
        return self.ours(ids, targets=ids, **more)[0][..., :self.V]


@pytest.fixture(scope='module', params=KINDS)
def pair(request, tmp_path_factory):
    transformers.utils.logging.disable_progress_bar()
    return Pair(tmp_path_factory.mktemp('export'), *KINDS[request.param])


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=['float32', 'bfloat16'])
def in_dtype(request, pair):
    """The pair in another dtype."""
    pair = copy.copy(pair)
    pair.ours, pair.theirs = (copy.deepcopy(one).to(request.param) for one in (pair.ours, pair.theirs))
    pair.dtype = pair.ours.cache_dtype = request.param
    return pair


@torch.no_grad()
def test_logits_are_ours(in_dtype):
    ids = in_dtype.ids
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        logits = in_dtype.theirs(ids, use_cache=False).logits
    assert logits.dtype == in_dtype.dtype and (logits - in_dtype.logits(ids)).abs().max() < 1e-4
    assert torch.equal(in_dtype.theirs(ids, logits_to_keep=2).logits, in_dtype.theirs(ids).logits[:, -2:])
    assert set(in_dtype.theirs(ids)) == {'logits', CACHE}  # or it has an older name, at which transformers warns


@pytest.mark.parametrize('pieces', [[24], 24 * [1], [1, 2, 1, 1, 12, 7]], ids=['at once', 'one by one', 'in pieces'])
@torch.no_grad()
def test_logits_with_a_cache_are_ours_with_one(in_dtype, pieces):
    cache, theirs = generate.KVCache(32), {}
    cache.dtype = in_dtype.dtype
    for part in in_dtype.ids.split(pieces, dim=1):
        cache.prepare(part.size(1), part.device)
        expected = in_dtype.logits(part, cache=cache)
        cache.length += part.size(1)
        output = in_dtype.theirs(part, use_cache=True, **theirs)
        assert (output.logits - expected).abs().max() < 1e-4
        theirs = {CACHE: output[CACHE]}


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(pair):
    ids, padding = pair.ids, [0, 3, 9]
    T = ids.size(1)
    texts = [pair.logits(row[None, count:])[0] for row, count in zip(ids, padding)]
    left = torch.stack([torch.arange(T) >= count for count in padding]).long()
    whole = pair.theirs(ids, attention_mask=left).logits
    first = pair.theirs(ids[:, :12], attention_mask=left[:, :12], use_cache=True)
    rest = pair.theirs(ids[:, 12:], attention_mask=left, **{CACHE: first[CACHE]})
    cached = torch.cat((first.logits, rest.logits), dim=1)
    right = pair.theirs(torch.stack([row.roll(-count) for row, count in zip(ids, padding)]),
                        attention_mask=left.flip(1)).logits
    for row, (text, count) in enumerate(zip(texts, padding)):
        for logits in (whole[row, count:], cached[row, count:], right[row, :T - count]):
            assert (logits - text).abs().max() < 1e-4
    assert torch.stack((whole, cached, right)).isfinite().all()
    assert pair.theirs.layout(ids, left, seen=0)[2].any(dim=-1).all()  # a row of no keys is nan on some devices
    assert not torch.allclose(pair.theirs(ids).logits[1:, 9:], whole[1:, 9:], atol=1e-2)  # so padding would be seen


@pytest.mark.parametrize('use_cache', [True, False])
def test_greedy_and_beam_search_are_ours(pair, use_cache):
    prompt, options = pair.ids[:1, :7], dict(max_new_tokens=20, eos_token_id=None, use_cache=use_cache)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        written = pair.theirs.generate(prompt, do_sample=False, **options)
    assert torch.equal(written, pair.ours.generate(prompt, 20, temperature=0.0, vocab_size=pair.V))
    _, best = generate.beam_search(pair.ours, prompt, 20, 4, vocab_size=pair.V)[0]
    found = pair.theirs.generate(prompt, do_sample=False, num_beams=4, **options)
    assert found[0, 7:].tolist() == best and best != written[0, 7:].tolist()


def test_beams_of_a_padded_batch_are_the_same_with_a_cache(pair):
    mask = torch.ones_like(pair.ids[:, :9])
    mask[1, :3] = mask[2, :5] = 0
    cached, plain = (pair.theirs.generate(
        pair.ids[:, :9], attention_mask=mask, num_beams=3, num_return_sequences=2, max_new_tokens=15, do_sample=False,
        eos_token_id=None, pad_token_id=0, use_cache=use_cache) for use_cache in (True, False))
    assert cached.shape == (6, 24) and torch.equal(cached, plain)


def test_sampling_draws_by_a_seed_and_knows_no_padding_of_the_vocabulary(pair):
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(pair.theirs.generate(pair.ids, max_new_tokens=8, do_sample=True, temperature=9.0, top_k=0,
                                          eos_token_id=None))
    assert torch.equal(*drawn) and drawn[0].shape == (3, 32) and drawn[0].max() < pair.V


@torch.no_grad()
def test_a_cache_is_reordered_repeated_and_cut(pair):
    ids = pair.ids
    cache = pair.theirs(ids[:, :10], use_cache=True)[CACHE]
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_repeat_interleave(2)
    cache.crop(-4)
    rows = torch.tensor([2, 2, 0, 0, 0, 0])
    new = torch.cat((ids, ids))[:, 10:14]
    logits = pair.theirs(new, use_cache=True, **{CACHE: cache}).logits
    assert (logits - pair.logits(torch.cat((ids[rows, :6], new), dim=1))[:, 6:]).abs().max() < 1e-4


@torch.no_grad()
def test_the_loss_is_that_of_the_labels_shifted(pair):
    labels = pair.ids.clone()
    labels[:, :5] = labels[1, 9] = -100
    targets = torch.where(labels < 0, -1, labels)[:, 1:]
    logits = pair.logits(pair.ids)[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    output = pair.theirs(pair.ids, labels=labels)
    assert abs(output.loss - expected) < 1e-5 and output.logits.shape == (3, 24, pair.V)
    count = (targets >= 0).sum()
    for items in (10, torch.tensor(10)):
        scaled = pair.theirs(pair.ids, labels=labels, num_items_in_batch=items).loss
        assert scaled == pytest.approx((expected * count / 10).item(), abs=1e-5)
    assert pair.theirs(pair.ids, labels=torch.full_like(labels, -100)).loss == 0
    assert torch.equal(pair.theirs(pair.ids, labels=labels, return_dict=False)[0], output.loss)


def test_gradients_are_ours_with_and_without_recomputing_blocks(pair):
    ours = GPT.from_checkpoint(weights.load(str(pair.folder))).train()  # without the padding of the vocabulary
    ours(pair.ids[:, :-1], targets=pair.ids[:, 1:])[1].backward()
    for recompute in (False, True):
        theirs = copy.deepcopy(pair.theirs).train()
        if recompute:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # transformers 5.24 has another name for it
                theirs.gradient_checkpointing_enable()
        theirs(pair.ids, labels=pair.ids, use_cache=recompute or None).loss.backward()
        for name, p in theirs.named_parameters():
            assert torch.allclose(p.grad, ours.get_parameter(name).grad, atol=1e-5), name


def test_trainer_counts_the_labels_of_all_batches_of_a_step(pair, tmp_path):
    """Two micro-batches of 1 and 20 labels: each label counts the same, as num_items_in_batch says."""
    pytest.importorskip('accelerate')
    ids = pair.ids[0].tolist()
    rows = [dict(input_ids=ids, labels=23 * [-100] + ids[23:]), dict(input_ids=ids, labels=4 * [-100] + ids[4:])]
    theirs = copy.deepcopy(pair.theirs)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=1,
        learning_rate=1e-2, logging_steps=1, report_to=[], save_strategy='no', use_cpu=True, disable_tqdm=True)
    trainer = transformers.Trainer(theirs, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    logits = pair.logits(pair.ids[:1, :-1])[0]
    losses = F.cross_entropy(logits, pair.ids[0, 1:], reduction='none')
    expected = (losses[22] + losses[3:].sum()) / 21
    assert trainer.state.log_history[0]['loss'] == pytest.approx(expected.item(), abs=1e-3)
    assert not torch.equal(theirs.transformer.wte.weight, pair.theirs.transformer.wte.weight)
    assert trainer.evaluate()['eval_loss'] > 0


def test_it_is_saved_and_loaded_again_by_transformers_and_here(pair, tmp_path):
    pair.theirs.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **AUTO).eval()
    assert torch.equal(again(pair.ids).logits, pair.theirs(pair.ids).logits)
    for folder, meta in ((tmp_path, None), (pair.folder, pair.meta)):
        found = weights.load(str(folder))
        ours = GPT.from_checkpoint(found).eval()
        assert ours.config == GPTConfig(**{**vars(pair.ours.config), 'vocab_size': pair.V}) and found['meta'] == meta
        for name, p in pair.ours.named_parameters():
            assert torch.equal(ours.get_parameter(name), p[:pair.V] if name in (
                'transformer.wte.weight', 'lm_head.weight') else p), name


def test_the_tokenizer_gives_what_the_model_takes(pair):
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair.folder, **AUTO)
    inputs = tokenizer('the cat', return_tensors='pt')
    assert inputs.input_ids[0].tolist() == pair.tokenizer.encode('the cat')
    assert set(inputs) == {'input_ids', 'attention_mask'}  # token_type_ids would change what a GPT2LMHeadModel computes
    assert pair.theirs.generate(**inputs, max_new_tokens=3, eos_token_id=None).size(1) == inputs.input_ids.size(1) + 3


def test_the_vocabulary_grows(pair):
    theirs = copy.deepcopy(pair.theirs)
    theirs.resize_token_embeddings(pair.V + 2)
    logits = theirs(pair.ids).logits
    assert logits.size(2) == pair.V + 2 and (logits[..., :pair.V] - pair.logits(pair.ids)).abs().max() < 1e-4


def test_what_it_would_compute_otherwise_is_refused(pair):
    positions = torch.arange(24)[None]
    for problem, inputs in (('takes no position_ids', dict(position_ids=positions)),
                            ('takes no inputs_embeds, output_attentions',
                             dict(inputs_embeds=torch.zeros(3, 24, 32), output_attentions=True, head_mask=None)),
                            (r'attention_mask is \(3, 9\), and should be .*\(3, 24\)',
                             dict(attention_mask=torch.ones(3, 9)))):
        with pytest.raises(ValueError, match=problem):
            pair.theirs(pair.ids, **inputs)
    with pytest.raises(ValueError, match='a text of 48 tokens is longer than block_size=32'):
        pair.theirs(pair.ids.repeat(1, 2))
    with pytest.raises(ValueError, match='StaticCache is no cache for this model|does not support.*static'):
        pair.theirs.generate(pair.ids, max_new_tokens=2, cache_implementation='static')
    assert len(pair.theirs(pair.ids, output_hidden_states=True).hidden_states) == 3


def test_an_export_refuses_the_names_of_other_weights(pair, tmp_path):
    from safetensors.torch import load_file, save_file
    found = load_file(pair.folder / 'model.safetensors')
    (tmp_path / 'config.json').write_text((pair.folder / 'config.json').read_text())
    del found['transformer.wte.weight']
    save_file(found, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='transformer.wte.weight is missing'):
        weights.load(str(tmp_path))


@pytest.mark.parametrize('name', ['norm', 'rotary', 'rotate', 'bounded', 'layer_norm', 'MLP'])
def test_what_both_files_have_is_the_same(name):
    """So that no change of model.py forgets the exports; all else is compared by its numbers."""
    assert inspect.getsource(getattr(modeling_nanogpt, name)) == inspect.getsource(getattr(model, name))
    assert modeling_nanogpt.SMEARED == model.SMEARED


def test_the_defaults_of_both_configs_are_the_same():
    defaults = vars(GPTConfig())
    assert {key: getattr(modeling_nanogpt.NanoGPTConfig(), key) for key in defaults} == defaults


def test_the_file_stands_alone_and_touches_no_files_and_no_network():
    with open(os.path.join(ROOT, 'common', 'exporting', 'modeling_nanogpt.py'), encoding='utf-8') as f:
        tree = ast.parse(f.read())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition('.')[0] for name in imported} == {'math', 'torch', 'transformers'}
    assert not {'open', 'exec', 'eval', 'compile', '__import__', 'load', 'save'} & {
        getattr(node.func, 'id', getattr(node.func, 'attr', None)) for node in ast.walk(tree)
        if isinstance(node, ast.Call)}
