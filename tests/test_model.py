"""The model: GPT-2 to the letter, by Hugging Face's implementation, and the weights it can start from."""
import dataclasses
import json
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common import checkpoint as checkpoint_file
from common.training import moments
from model import GPT, GPTConfig, attend, load_weights, rotary, rotate
from peak_bytes import PeakBytes
from running import ROOT, ok, python

SMALL = dict(block_size=32, vocab_size=96, n_layer=3, n_head=4, n_embd=48)


def small_gpt(seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for p in model.parameters():  # weights far from their initial values show what they would hide
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope='module')
def huggingface():
    """A random small GPT2LMHeadModel, and ids for it."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_positions=32, vocab_size=96, n_layer=3, n_head=4, n_embd=48,
                                     bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval(), torch.randint(96, (2, 32))


@pytest.mark.parametrize('files', ['one', 'several', 'openai'])
def test_logits_and_loss_equal_hugging_face(huggingface, tmp_path, files):
    reference, idx = huggingface
    reference.save_pretrained(tmp_path, max_shard_size='50KB' if files == 'several' else '1GB')
    if files == 'openai':  # as in OpenAI's own repositories: no prefix, and the attention masks among the weights
        from safetensors.torch import load_file, save_file
        weights = {key.removeprefix('transformer.'): value for key, value in
                   load_file(tmp_path / 'model.safetensors').items()}
        save_file({**weights, 'h.0.attn.bias': torch.ones(1, 1, 32, 32)}, tmp_path / 'model.safetensors')
    if files == 'several':
        assert len(list(tmp_path.glob('*.safetensors'))) > 1
    model = GPT.from_pretrained(str(tmp_path)).eval()
    assert model.config.activation == 'gelu_tanh' and model.config.bias
    logits, loss = model(idx, targets=idx.roll(-1, dims=1))
    expected = reference(idx).logits
    assert (logits - expected).abs().max() < 1e-4
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), idx.roll(-1, dims=1).flatten())
    assert abs(loss.item() - expected_loss.item()) < 1e-5
    assert torch.allclose(model(idx)[0], logits[:, [-1]], atol=1e-5)


def test_from_pretrained_needs_no_transformers(huggingface, tmp_path):
    huggingface[0].save_pretrained(tmp_path)
    code = ('import sys; from model import GPT; GPT.from_pretrained(sys.argv[1]); '
            'assert "transformers" not in sys.modules')
    ok(python('-c', code, tmp_path, cwd=ROOT))


@pytest.mark.parametrize('change', [{'model_type': 'llama'}, {'scale_attn_by_inverse_layer_idx': True},
                                    {'n_inner': 100}, {'activation_function': 'relu'},
                                    {'tie_word_embeddings': False}])
def test_from_pretrained_refuses_what_it_would_get_wrong(huggingface, tmp_path, change):
    huggingface[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=next(iter(change.values())) if 'model_type' in change else next(iter(change))):
        GPT.from_pretrained(str(tmp_path))


def test_from_pretrained_without_a_network_says_to_name_a_folder():
    done = python('-c', 'from model import GPT; GPT.from_pretrained("gpt2")', cwd=ROOT, HF_HOME='/nonexistent')
    assert 'ValueError: gpt2 is no file or folder here' in done.stderr and 'name a folder' in done.stderr


# What the original nanoGPT saved for n_layer=1, n_embd=C, block_size=T and vocab_size=V with bias=True: the names in
# the order of its parameters, each with its shape. lm_head.weight is tied to wte.weight and comes last.
ORIGINAL = [('transformer.wte.weight', 'VC'), ('transformer.wpe.weight', 'TC'),
            ('transformer.h.0.ln_1.weight', 'C'), ('transformer.h.0.ln_1.bias', 'C'),
            ('transformer.h.0.attn.c_attn.weight', '3C'), ('transformer.h.0.attn.c_attn.bias', '3'),
            ('transformer.h.0.attn.c_proj.weight', 'CC'), ('transformer.h.0.attn.c_proj.bias', 'C'),
            ('transformer.h.0.ln_2.weight', 'C'), ('transformer.h.0.ln_2.bias', 'C'),
            ('transformer.h.0.mlp.c_fc.weight', '4C'), ('transformer.h.0.mlp.c_fc.bias', '4'),
            ('transformer.h.0.mlp.c_proj.weight', 'C4'), ('transformer.h.0.mlp.c_proj.bias', 'C'),
            ('transformer.ln_f.weight', 'C'), ('transformer.ln_f.bias', 'C')]


def test_a_checkpoint_of_the_original_loads_with_its_optimizer(tmp_path):
    size = {'V': 96, 'C': 48, 'T': 32, '3': 3 * 48, '4': 4 * 48}
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn([size[letter] for letter in shape]) for name, shape in ORIGINAL}
    # its optimizer numbered the parameters by group: first those of two dimensions, then those of one
    names = sorted(weights, key=lambda name: weights[name].dim() < 2)
    states = {i: dict(step=torch.tensor(7.0), exp_avg=torch.full_like(weights[name], i),
                       exp_avg_sq=torch.ones_like(weights[name])) for i, name in enumerate(names)}
    group = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, amsgrad=False, maximize=False, foreach=None, capturable=False,
                 differentiable=False, fused=None)
    matrices = sum(weights[name].dim() == 2 for name in names)
    groups = [dict(group, weight_decay=0.1, params=list(range(matrices))),
              dict(group, weight_decay=0.0, params=list(range(matrices, len(names))))]
    saved = {f'_orig_mod.{name}': value for name, value in weights.items()}
    saved['_orig_mod.transformer.h.0.attn.bias'] = torch.ones(1, 1, 32, 32)
    saved['_orig_mod.lm_head.weight'] = weights['transformer.wte.weight']
    model_args = dict(n_layer=1, n_head=4, n_embd=48, block_size=32, bias=True, vocab_size=96, dropout=0.0)
    torch.save(dict(model=saved, optimizer=dict(state=states, param_groups=groups), model_args=model_args, iter_num=7,
                    best_val_loss=torch.tensor(1.5), config=dict(dataset='shakespeare_char')), tmp_path / 'ckpt.pt')

    model, checkpoint = load_weights(str(tmp_path))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
    assert model.lm_head.weight is model.transformer.wte.weight and model.config.activation == 'gelu'
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    moments.load(model, optimizer, torch.amp.GradScaler('cpu', enabled=False), checkpoint)
    for i, name in enumerate(names):
        state = optimizer.state[model.get_parameter(name)]
        assert state['step'] == 7 and torch.equal(state['exp_avg'], torch.full_like(weights[name], i))
    assert all(group['fused'] for group in optimizer.param_groups)


@pytest.mark.parametrize('name, content', [('model.safetensors', b'random bytes'), ('config.json', b'{"model_type": '),
                                           ('config.json', b'{"model_type": "gpt2"}')])
def test_a_damaged_folder_of_weights_is_named(huggingface, tmp_path, name, content):
    huggingface[0].save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        GPT.from_pretrained(str(tmp_path))


@pytest.mark.parametrize('reason, config, weights, meta', [
    ('lm_head.weight differs', {}, {'lm_head.weight': torch.zeros(96, 48)}, None),
    ('ln_f.bias is not finite', {}, {'transformer.ln_f.bias': torch.full((48,), math.nan)}, None),
    ('wte.weight is .96, 48., and should be .97, 48.', {'vocab_size': 97}, {}, None),
    ('it has h.2', {'n_layer': 2}, {}, None), ('c_fc.weight', {}, {'transformer.h.0.mlp.c_fc.weight': torch.zeros(3)}, None),
    ("n_layer='2'", {'n_layer': '2'}, {}, None), ('n_embd=None', {'n_embd': None}, {}, None),
    ("activation_function=..gelu", {'activation_function': ['gelu']}, {}, None),
    ('meta.json is damaged .*chars', {}, {}, '{"tokenizer": "char", "vocab_size": 4}'),
    ('meta.json is damaged', {}, {}, '{'), ('meta.json is damaged', {}, {}, '{"tokenizer": 5}')])
def test_a_folder_that_no_script_could_use_says_what_is_wrong(huggingface, tmp_path, reason, config, weights, meta):
    from safetensors.torch import load_file, save_file
    huggingface[0].save_pretrained(tmp_path)
    path = str(tmp_path / 'model.safetensors')
    save_file(load_file(path) | weights, path)
    original = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(original | config))
    if meta:
        (tmp_path / 'meta.json').write_text(meta)
    with pytest.raises(ValueError, match=reason):
        GPT.from_pretrained(str(tmp_path))


def test_the_future_does_not_change_the_past():
    model, idx = small_gpt(), torch.randint(96, (1, 32))
    changed = idx.clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % 96
    before, after = model(idx, idx)[0], model(changed, idx)[0]
    assert torch.allclose(before[:, :20], after[:, :20], atol=1e-5)
    assert not torch.allclose(before[:, 20:], after[:, 20:], atol=1e-3)


def test_targets_of_minus_one_do_not_count():
    model, idx = small_gpt(), torch.randint(96, (1, 32))
    targets = idx.roll(-1, dims=1)
    targets[0, 10:] = -1
    expected = torch.nn.functional.cross_entropy(model(idx, idx)[0][0, :10], targets[0, :10])
    assert torch.allclose(model(idx, targets)[1], expected)


@pytest.mark.parametrize('recompute', [False, True])
def test_where_no_target_counts_there_is_nothing_to_learn(recompute):
    model, idx = small_gpt().train(), torch.randint(96, (2, 32))
    model.gradient_checkpointing = recompute
    loss = model(idx, torch.full_like(idx, -1))[1]
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in model.parameters())


def test_a_new_model_knows_nothing_and_keeps_the_residual_scale():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=500, n_layer=8, n_head=4, n_embd=64))
    idx = torch.randint(500, (4, 64))
    assert abs(model(idx, idx.roll(1, dims=1))[1].item() - math.log(500)) < 0.1
    block = model.transformer.h[0]
    assert abs(block.mlp.c_fc.weight.std().item() - 0.02) < 1e-3
    assert abs(block.mlp.c_proj.weight.std().item() - 0.02 / math.sqrt(16)) < 1e-3
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize('modern', [False, True])
def test_gradient_checkpointing_changes_no_gradient(monkeypatch, modern):
    monkeypatch.setattr('model.LOGITS_AT_ONCE', 24 * 96)  # of 24 of 64 tokens
    model, idx = small_gpt(dropout=0.1, modern=modern).train(), torch.randint(96, (2, 32))
    targets = idx.clone()
    targets[0, :5] = -1
    gradients = []
    for recompute in (False, True):
        model.gradient_checkpointing = recompute
        model.zero_grad()
        torch.manual_seed(1)
        model(idx, targets)[1].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*gradients))


@pytest.mark.parametrize('modern', [False, True])
def test_under_autocast_the_residual_stream_is_in_its_dtype(modern):
    model, seen = small_gpt(modern=modern), []
    for block in model.transformer.h:
        block.register_forward_hook(lambda block, args, output: seen.extend((args[0].dtype, output.dtype)))
    with torch.autocast('cpu', torch.bfloat16):
        model(torch.zeros(1, 4, dtype=torch.long))
    assert seen == 2 * len(model.transformer.h) * [torch.bfloat16]
    seen.clear()
    model.to('meta')(torch.zeros(1, 4, dtype=torch.long, device='meta'))  # where there is no autocast
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize('modern', [False, True])
def test_no_token_sees_a_later_one(modern):
    model, idx = small_gpt(modern=modern), torch.randint(96, (2, 32))
    other = idx.clone()
    other[:, 20:] = torch.randint(96, (2, 12))
    ours, theirs = model(idx, idx)[0], model(other, other)[0]
    assert torch.allclose(ours[:, :20], theirs[:, :20], atol=1e-5)
    assert not torch.allclose(ours[:, 20:], theirs[:, 20:], atol=1e-2)


def test_the_modern_model_is_what_its_description_says():
    """Each part once more, one sequence and one head at a time, from the weights."""
    model, idx = small_gpt(modern=True, bias=True, softcap=15.0), torch.randint(96, (32,))
    weights = model.state_dict()

    def norm(x):
        return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    def linear(name, x):
        return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']

    def turn(x):  # (T, head_dim), pairs of channels as complex numbers
        half = x.size(1) // 2
        angles = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
        turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), dim=1)

    x = norm(weights['transformer.wte.weight'][idx])
    assert weights['smear'].shape == (3, 48) and (weights['smear'].abs().amax(dim=1) > 0.1).all()
    x = x + sum(weights['smear'][n - 1] * torch.cat((torch.zeros(n, 48), x[:-n])) for n in (1, 2, 3))
    for i in range(3):
        q, k, v = linear(f'transformer.h.{i}.attn.c_attn', norm(x)).split(48, dim=1)
        heads = []
        for h in range(4):
            q_h, k_h, v_h = (y[:, 12 * h:12 * h + 12] for y in (q, k, v))
            scores = turn(norm(q_h)) @ turn(norm(k_h)).T * math.sqrt(2 / 12)
            scores = scores.masked_fill(torch.ones(32, 32).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(dim=1) @ v_h)
        x = x + linear(f'transformer.h.{i}.attn.c_proj', torch.cat(heads, dim=1))
        hidden = linear(f'transformer.h.{i}.mlp.c_fc', norm(x)).clamp(min=0)
        x = x + linear(f'transformer.h.{i}.mlp.c_proj', hidden**2)
    expected = 15 * (norm(x) @ weights['lm_head.weight'].T / 15).tanh()
    assert torch.allclose(model(idx[None], idx[None])[0][0], expected, atol=1e-4)
    assert torch.allclose(model(idx[None])[0][0], expected[-1:], atol=1e-4)


@pytest.mark.parametrize('modern', [False, True])
@pytest.mark.parametrize('length', [1, 2, 3])
def test_a_text_shorter_than_the_smear_is_the_beginning_of_a_longer_one(modern, length):
    model, idx = small_gpt(modern=modern), torch.randint(96, (2, 32))
    assert torch.allclose(model(idx[:, :length], idx[:, :length])[0], model(idx, idx)[0][:, :length], atol=1e-5)


@pytest.mark.parametrize('modern', [False, True])
@pytest.mark.parametrize('at_once', [2**27, 24 * 96])  # of 24 of 64 tokens
def test_a_softcap_bounds_the_logits_and_training_follows_their_loss(monkeypatch, modern, at_once):
    """Against the same model without one, whose logits are bounded here."""
    monkeypatch.setattr('model.LOGITS_AT_ONCE', at_once)
    plain, capped = (small_gpt(modern=modern, softcap=softcap).train() for softcap in (0.0, 2.0))
    idx = torch.randint(96, (2, 32))
    targets = idx.roll(-1, dims=1)
    targets[0, :5] = -1
    with monkeypatch.context() as at_most_all:
        at_most_all.setattr('model.LOGITS_AT_ONCE', 2**27)
        logits = 2 * (plain.eval()(idx, idx)[0] / 2).tanh()
    assert logits.abs().max() > 1.5
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss.backward()
    ours, training_loss = capped(idx, targets)
    training_loss.backward()
    assert (ours is None) == (at_once < 2**27)
    for model in (capped.train(), capped.eval()):
        with torch.no_grad():
            evaluated, value = model(idx, targets)
        assert torch.allclose(evaluated, logits, atol=1e-5) and torch.allclose(value, loss, atol=1e-5)
    assert torch.allclose(training_loss, loss, atol=1e-5)
    for (name, a), b in zip(capped.named_parameters(), plain.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize('modern', [False, True])
def test_with_zero_init_blocks_do_nothing_and_a_modern_model_predicts_all_alike(modern):
    torch.manual_seed(0)
    model, idx = GPT(GPTConfig(**SMALL, modern=modern), zero_init=True), torch.randint(96, (2, 32))
    for block in model.transformer.h:
        assert not block.attn.c_proj.weight.any() and not block.mlp.c_proj.weight.any()
        assert block.attn.c_attn.weight.std() > 0.01 and block.mlp.c_fc.weight.std() > 0.01
        x = torch.randn(1, 4, 48)
        assert torch.equal(block(x, rotary(torch.arange(4), 12) if modern else None), x)
    logits, loss = model(idx, idx)
    loss.backward()
    assert model.transformer.wte.weight.any() and model.lm_head.weight.grad.any()
    assert bool(logits.any()) != modern and (loss.item() == pytest.approx(math.log(96), abs=1e-6)) == modern


def test_rotary_products_depend_on_the_distance_alone():
    q, k = torch.randn(16), torch.randn(16)
    cos, sin = rotary(torch.arange(32), 16)
    turned_q, turned_k = (rotate(x.expand(1, 32, 1, 16), cos, sin)[0, :, 0] for x in (q, k))
    products = turned_q @ turned_k.T  # (position of q, position of k)
    for distance in (0, 1, 7):
        along = products.diagonal(-distance)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-4)
    assert products[0, 0].item() == pytest.approx((q @ k).item(), abs=1e-5) and products[7, 0] != products[0, 0]


def test_attention_for_training_in_bfloat16_on_a_cpu_is_attention():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 4, 32, 16) for _ in range(3)]
    gradients, outputs = [], []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (x.clone().to(dtype).requires_grad_() for x in inputs)
        outputs.append(attend(q, k, v, scale=0.3, dropout=0.0))
        (outputs[-1].float() * inputs[0]).sum().backward()
        gradients.append([x.grad.float() for x in (q, k, v)])
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, scale=0.3)
    assert torch.allclose(outputs[0], expected, atol=1e-6)
    assert outputs[1].dtype == torch.bfloat16 and torch.allclose(outputs[1].float(), expected, atol=0.03)
    assert all(torch.allclose(a, b, atol=0.1) for a, b in zip(*gradients))


def test_a_modern_checkpoint_comes_back(tmp_path):
    model, idx = small_gpt(modern=True), torch.randint(96, (1, 16))
    checkpoint_file.save(dict(model=model.state_dict(), model_args=dataclasses.asdict(model.config)),
                         tmp_path / 'ckpt.pt')
    again = GPT.from_checkpoint(str(tmp_path / 'ckpt.pt')).eval()
    assert torch.equal(again(idx)[0], model(idx)[0])
    again.crop_block_size(16)
    assert torch.equal(again(idx)[0], model(idx)[0])


@pytest.mark.parametrize('name', ['ckpt.pt', 'model.safetensors'])
def test_a_checkpoint_from_when_the_smear_reached_one_token_back_is_the_same_function(tmp_path, name):
    """Its smear was a vector (n_embd,)."""
    model, idx = small_gpt(modern=True), torch.randint(96, (1, 16))
    with torch.no_grad():
        model.smear[1:] = 0.0
    old = {**model.state_dict(), 'smear': model.smear[0].detach().clone()}
    model_args = {key: value for key, value in dataclasses.asdict(model.config).items() if key != 'softcap'}
    if name == 'ckpt.pt':
        checkpoint_file.save(dict(model=old, model_args=model_args), tmp_path / name)
    else:
        from safetensors.torch import save_file
        save_file(old, tmp_path / name, metadata={'checkpoint': json.dumps(dict(model_args=model_args, meta=None))})
    again, checkpoint = load_weights(str(tmp_path / name))
    assert again.config.softcap == 0.0 and torch.equal(again.smear, model.smear)
    assert torch.equal(again.eval()(idx)[0], model(idx)[0])
    again.load_state_dict(checkpoint['model'])  # so that a run can go on from it


def test_cropping_the_context_keeps_the_logits():
    model, idx = small_gpt(), torch.randint(96, (1, 16))
    before = model(idx)[0]
    model.crop_block_size(16)
    assert torch.equal(model(idx)[0], before)
    with pytest.raises(ValueError, match='block_size=16'):
        model(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match='block_size=32 is above'):
        model.crop_block_size(32)


def test_only_matrices_and_embeddings_decay():
    model = small_gpt()
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    decayed, plain = optimizer.param_groups
    assert (decayed['weight_decay'], plain['weight_decay']) == (0.1, 0.0)
    assert all(p.dim() == 2 for p in decayed['params']) and all(p.dim() == 1 for p in plain['params'])
    assert len(decayed['params']) + len(plain['params']) == len(list(model.parameters()))


def test_fused_adamw_equals_the_plain_one():
    models = [small_gpt(), small_gpt()]
    fused = models[0].configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    groups = [{'params': [p for p in models[1].parameters() if p.dim() >= 2], 'weight_decay': 0.1},
              {'params': [p for p in models[1].parameters() if p.dim() < 2], 'weight_decay': 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), foreach=False)
    for _ in range(3):
        for a, b in zip(models[0].parameters(), models[1].parameters()):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        fused.step()
        plain.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_sizes_and_costs_of_gpt2():
    with torch.device('meta'):
        model = GPT(GPTConfig(vocab_size=50257))
    assert model.get_num_params(non_embedding=False) == 124_439_808  # what OpenAI's weights count
    assert model.flops_per_token() == pytest.approx(0.86e9, rel=0.01)


def test_impossible_configurations_are_refused():
    with pytest.raises(ValueError, match='n_embd=50 is not divisible by n_head=4'):
        GPTConfig(**{**SMALL, 'n_embd': 50})
    with pytest.raises(ValueError, match='heads of 15 channels'):
        GPTConfig(**{**SMALL, 'n_embd': 60}, modern=True)
    with pytest.raises(ValueError, match='activation'):
        GPTConfig(**SMALL, activation='relu')


def test_weights_of_another_shape_are_named(tmp_path):
    model = small_gpt()
    model_args = dataclasses.asdict(model.config)
    with pytest.raises(ValueError, match='do not fit'):
        GPT.from_checkpoint(dict(model=model.state_dict(), model_args={**model_args, 'n_embd': 96}))


def test_an_evaluation_takes_a_16_bit_copy_of_the_weights_and_the_logits_of_one_batch():
    """As config/eval_gpt2_xl.py evaluates GPT-2 XL, but for its number of layers; tensors without data."""
    with FakeTensorMode():
        model = GPT(GPTConfig(n_layer=4, n_head=25, n_embd=1600, block_size=1024, vocab_size=50257)).eval()
        idx = torch.zeros(8, 1024, dtype=torch.long)
        with PeakBytes() as bytes, torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            logits, _ = model(idx, idx)
    copy, output = 2 * model.get_num_params(), 2 * logits.numel()
    assert logits.dtype == torch.bfloat16 and copy + output < bytes.peak < 1.2 * (copy + output)
