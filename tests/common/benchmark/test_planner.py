"""The plan against what a run takes, exactly or within 10%, and against published runs of others."""
import functools
import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import model as models
from common import device
from common.benchmark import planner, roofline
from common.settings import disk_bytes, state_bytes
from common.training import attention
from common.weights import OPENAI
from conftest import slow
from model import GPT, GPTConfig
from peak_bytes import PeakBytes

# published runs: a row of device.GPUS, how many, tokens/s of GPT-2 124M on all of them or a share of the peak, source
PUBLISHED = [
    ('v100-32gb', 1, 61440 / 1.097, 'nanoGPT issue 215: 61,440 tokens in 1,097 ms'),
    ('v100-32gb', 1, 0.48, 'Megatron-LM, 1.2B, arXiv 1909.08053'),
    ('v100-32gb', 1, 0.52, "DeepSpeed's BERT-Large"),
    ('a100-40gb', 8, 295e9 / (4 * 86400), 'nanoGPT README: 4 days'),
    ('a100-40gb', 8, 877e3, 'nanoGPT issue 110'),
    ('a100-80gb', 8, 10.26e9 / (94 * 60), 'llm.c: 94 minutes'),
    ('a100-80gb', 8, 0.74, "nanochat pull request 147, its d20"),
    ('h100', 1, 1.04 * 312 / 989, "nanoGPT pull request 464: 104% of an A100's 312 TFLOP/s"),
    ('h100', 8, 10e9 / (45 * 60), 'modded-nanogpt README: llm.c, 45 minutes'),
    ('h100', 8, 0.41, "nanochat dev/LOG.md, its d12"),
    ('h100', 8, 0.46, "nanochat dev/LOG.md, its d18"),
    ('rtx4090', 1, 0.29 * 312 / 165.2, "nanoGPT issue 182: 29% of an A100's 312 TFLOP/s"),
    ('rtx4090', 2, 220700, 'tylerromero.com/posts/nanogpt-speedrun-worklog'),
    ('rtx3090', 1, 20000, 'gilesthomas.com, part 28: up to 20,000 tokens/s')]


def make_model(device='cpu', **changes):
    shape = dict(block_size=64, vocab_size=128, n_layer=3, n_head=4, n_embd=64, bias=False)
    with torch.device(device):
        return GPT(GPTConfig(**{**shape, **changes}))


@functools.cache
def full_size(name):
    n_layer, n_head, n_embd = OPENAI[name]
    return make_model('meta', block_size=1024, vocab_size=50304, n_layer=n_layer, n_head=n_head, n_embd=n_embd)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('modern', [False, True])
@pytest.mark.parametrize('bias', [False, True])
def test_weights_gradients_and_moments_are_counted_exactly(optimizer, modern, bias):
    model = make_model(modern=modern, bias=bias)
    muon = dict(muon_lr=0.02, muon_dtype=torch.float32) if optimizer == 'muon' else {}
    opt = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu', **muon)
    idx = torch.randint(128, (2, 64))
    model(idx, idx)[1].backward()
    for group in opt.param_groups:
        group['momentum'] = 0.9
    opt.step()
    weights = sum(p.nbytes for p in model.parameters())
    gradients = sum(p.grad.nbytes for p in model.parameters())
    moments = sum(value.nbytes for state in opt.state.values() for value in state.values() if value.dim() > 0)
    parts = planner.memory(model, optimizer, half=False, dropout=0.0, batch_size=1)
    assert (parts['weights'], parts['gradients'], parts['optimizer']) == (weights, gradients, moments)
    assert state_bytes(vars(model.config), 128, optimizer) == (weights, moments)
    run = dict(vars(model.config), optimizer=optimizer, max_iters=250, keep_interval=100)
    assert disk_bytes(run, 128) == (1 + 2) * weights + 3 * (weights + moments)
    assert disk_bytes({**run, 'keep_interval': 0}, 128) == weights + 3 * (weights + moments)


def most_bytes_of_a_step(model, half, batch_size):
    """What forward and backward take at most, eager, on a CPU, beside weights and gradients that are there already."""
    idx = torch.zeros(batch_size, model.config.block_size, dtype=torch.long)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with PeakBytes([tensor for p in model.parameters() for tensor in (p, p.grad)]) as bytes:
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss = model(idx, idx)[1]
        loss.backward()
    return bytes.peak


@pytest.mark.parametrize('half, checkpointing, batch_size, changes', [
    (True, False, 4, {}),  # all logits at once
    (True, False, 8, {}),  # chunk by chunk
    (True, True, 8, {}),
    slow(False, False, 4, {}), slow(False, False, 8, {}), slow(False, True, 32, {}), slow(True, True, 1, {}),
    (True, False, 8, {'modern': True}), slow(False, True, 8, {'modern': True}),
    (True, False, 2, {'softcap': 15.0}), (False, False, 2, {'softcap': 15.0}),  # all logits at once
    (True, False, 8, {'softcap': 15.0}), (False, True, 8, {'softcap': 15.0}),  # chunk by chunk
    (True, True, 2, {'modern': True, 'softcap': 15.0}), (False, False, 2, {'modern': True, 'softcap': 15.0}),
    (True, False, 8, {'modern': True, 'softcap': 15.0}), slow(False, False, 8, {'modern': True, 'softcap': 15.0}),
    (True, False, 8, {'vocab_size': 64}), (False, True, 8, {'vocab_size': 64}),
    (True, False, 64, {'vocab_size': 64, 'block_size': 256}),  # attention is not fused
    (False, False, 64, {'vocab_size': 64, 'block_size': 256, 'dropout': 0.2}),
    slow(True, False, 64, {'vocab_size': 64, 'block_size': 256, 'dropout': 0.2}),
    slow(True, False, 4, {'dropout': 0.2})])
def test_memory_is_within_a_tenth_of_what_a_step_takes(half, checkpointing, batch_size, changes):
    """On tensors without data; what the library of a GPU allocates for itself is not among them."""
    shape = dict(block_size=1024, vocab_size=50304, n_layer=4, n_head=12, n_embd=768)
    with FakeTensorMode():
        model = make_model(**{**shape, **changes})
        model.gradient_checkpointing = checkpointing
        measured = most_bytes_of_a_step(model, half, batch_size)
    parts = planner.memory(model, 'adamw', half, model.config.dropout, batch_size, checkpointing, compiled=False,
                           on_cpu=True)
    assert sum(parts.values()) - sum(parts[part] for part in ('weights', 'gradients', 'optimizer')) == pytest.approx(
        measured, rel=0.1)


def test_the_plan_knows_the_limits_of_the_model():
    assert planner.LOGITS_AT_ONCE == models.LOGITS_AT_ONCE
    q = torch.zeros(1, 1, planner.UNFUSED, 8, dtype=torch.bfloat16, requires_grad=True)
    assert attention.is_faster_than_fused(q) and not attention.is_faster_than_fused(torch.cat((q, q), dim=2))


def test_compiled_code_is_planned_to_keep_less():
    """
    Logits and their gradient in 16 bits, no float32 copies of what goes into a norm. A chunk is the same, but the
    gradients of the weights by all chunks are there at once.
    """
    options = dict(model=full_size('gpt2'), optimizer='adamw', half=True, dropout=0.0)
    eager, compiled = (planner.memory(**options, batch_size=2, compiled=value) for value in (False, True))
    assert eager['logits'] == 3 * compiled['logits'] == 12 * 2 * 1024 * 50304
    assert eager['activations'] - compiled['activations'] == 2 * 1024 * (2 * 12 + 1) * 2 * 768
    eager, compiled = (planner.memory(**options, batch_size=8, compiled=value)['logits'] for value in (False, True))
    assert eager == 8 * 2 * 1024 * 50304 + 4 * 50304 * 768  # of a quarter of the 8,192 tokens
    assert compiled == eager + 4 * 2 * 50304 * 768


@pytest.mark.parametrize('half, compiled, on_cpu, all_at_once, chunk', [
    (True, False, False, 2, 2), (False, False, False, 4, 0),  # the tanh is kept; a chunk is bounded in float32
    (True, True, False, 0, 0), (False, True, False, 0, 0),  # the gradient takes the place of the unbounded logits
    (True, True, True, 0, 4), (False, True, True, 0, 4)])  # counted in the code that PyTorch makes for a CPU
def test_a_softcap_is_planned_to_take_so_many_bytes_for_each_logit(half, compiled, on_cpu, all_at_once, chunk):
    def logits(softcap, batch_size):
        model = make_model('meta', block_size=1024, vocab_size=50304, softcap=softcap)
        return planner.memory(model, 'adamw', half, 0.0, batch_size, compiled=compiled, on_cpu=on_cpu)['logits']
    more = [logits(15.0, batch_size) - logits(0.0, batch_size) for batch_size in (2, 8)]
    assert more == [all_at_once * 2 * 1024 * 50304, chunk * 2 * 1024 * 50304]  # a quarter of the 8,192 tokens


@pytest.mark.parametrize('gpu, gpus, published, source', PUBLISHED)
def test_what_others_published_is_within_the_range(gpu, gpus, published, source):
    low, high, _ = planner.find_mfu(device.GPUS[gpu])
    if published > 1:  # tokens/s
        low, high = planner.speed(full_size('gpt2'), device.GPUS[gpu], gpus)
    assert low <= 1.015 * published and published <= 1.015 * high, source  # shares are rounded


@pytest.mark.parametrize('gpu', ['v100-32gb', 'a100-40gb', 'h100', 'rtx4090'])
def test_the_ends_of_a_range_are_published_figures(gpu):
    row = device.GPUS[gpu]
    at_peak = planner.speed(full_size('gpt2'), row)[0] / planner.find_mfu(row)[0]
    shares = [value if value <= 1 else value / gpus / at_peak
              for name, gpus, value, _ in PUBLISHED if device.GPUS[name].pattern == row.pattern]
    assert planner.find_mfu(row)[:2] == pytest.approx((min(shares), max(shares)), abs=0.01)


def test_a_gpu_with_nothing_published_says_that_its_range_is_a_guess():
    named = {name: planner.find_mfu(row)[2] for name, row in device.GPUS.items()}
    published = {name for name, *_ in PUBLISHED}
    assert all('guess' not in named[name] for name in published)
    assert all('guess' in named[name] for name in ('t4', 'l4', 'a10', 'l40s', 'b200', 'mi300x'))
    assert all('3090' in named[name] for name in ('rtx4090', 'rtx5090')) and 'H100s' in named['h200']
    assert all(planner.find_mfu(device.GPUS[name])[1] < planner.GUESS[1] for name in ('t4', 'l4'))  # 70 W
    assert planner.find_mfu(device.GPUS['l40s']) == planner.GUESS


@pytest.mark.parametrize('name', OPENAI)
@pytest.mark.parametrize('gpu', ['v100-16gb', 'v100-32gb'])
@pytest.mark.parametrize('checkpointing', [False, True])
def test_the_largest_batch_fits_and_the_next_one_does_not(name, gpu, checkpointing):
    options = dict(model=full_size(name), optimizer='adamw', half=True, dropout=0.0, checkpointing=checkpointing)
    budget = device.GPUS[gpu].memory_gb * planner.GB - planner.RESERVED
    batch = planner.largest_batch(budget, **options)
    assert batch == 0 or sum(planner.memory(**options, batch_size=batch).values()) <= budget
    assert sum(planner.memory(**options, batch_size=batch + 1).values()) > budget


def test_checkpointing_and_sharding_save_memory():
    options = dict(model=full_size('gpt2-large'), optimizer='adamw', half=True, dropout=0.0, batch_size=4)
    plain, again, shared = (planner.memory(**options, **more) for more in (
        {}, dict(checkpointing=True), dict(gpus=8, fsdp=True)))
    assert again['activations'] < plain['activations'] / 5 and again['weights'] == plain['weights']
    assert shared['weights'] * 8 == plain['weights'] and shared['optimizer'] * 8 == plain['optimizer']
    assert shared['activations'] == plain['activations']


def test_a_sharded_model_gathers_blocks_in_16_bits_instead_of_keeping_copies():
    options = dict(optimizer='adamw', half=True, dropout=0.0, batch_size=1, gpus=8)
    model = full_size('gpt2')
    whole, sharded = (planner.memory(model, fsdp=value, **options) for value in (False, True))
    assert '16-bit weights' not in sharded and 'whole blocks' not in whole
    outside = model.lm_head.weight.numel() + model.transformer.wpe.weight.numel() + 768
    assert sharded['whole blocks'] == 8 * (2 * sum(p.numel() for p in model.transformer.h[0].parameters()) + outside)


def settings_of(**changes):
    return dict(dict(n_layer=12, n_embd=768, block_size=1024, bias=False, modern=False, optimizer='adamw', dropout=0.0,
                     fsdp=False, compile=True, gradient_checkpointing=False, gradient_accumulation_steps=2,
                     batch_size=12, max_iters=1000, keep_interval=0), **changes)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_the_verdict_flips_at_the_largest_batch(checkpointing):
    def plan(batch_size):
        settings = settings_of(gradient_checkpointing=checkpointing, batch_size=batch_size)
        return planner.plan(full_size('gpt2'), device.GPUS['v100-16gb'], 'float16', settings)
    ends = ('', '_checkpointing')
    without, largest = (plan(1)[f'largest_batch_size{end}'] for end in (ends[0], ends[checkpointing]))
    *_, fits = planner.memory_lines(plan(largest))
    *_, does_not = planner.memory_lines(plan(largest + 1))
    assert plan(largest)['fits'] is True and fits.startswith('fits: ') and f'at batch_size={largest}' in fits
    assert plan(largest + 1)['fits'] is False and does_not.startswith('does not fit: ')
    assert f'the largest batch_size is {largest}' in does_not
    assert ('--gradient_checkpointing=True' in does_not) == (not checkpointing)
    total = plan(largest + 1)[f'total_bytes{ends[checkpointing]}'] / planner.GB
    assert f'{total:.1f} of 14 GB' in does_not and without > 0


def test_heads_that_no_fused_kernel_takes_are_named():
    model = make_model('meta', n_embd=36)  # 4 heads of 9 channels
    settings = settings_of(n_embd=36, block_size=64)
    for gpu, dtype, said in (('h100', 'float16', True), ('h100', 'float32', False)):
        lines = planner.memory_lines(planner.plan(model, device.GPUS[gpu], dtype, settings))
        assert any('no fused attention' in line for line in lines) == said


def test_a_model_that_never_fits_has_no_largest_batch():
    settings = settings_of(n_layer=48, n_embd=1600)
    figures = planner.plan(full_size('gpt2-xl'), device.GPUS['v100-16gb'], 'float16', settings)
    assert figures['largest_batch_size'] == figures['largest_batch_size_checkpointing'] == 0
    assert list(planner.memory_lines(figures))[-1].endswith('; no batch_size does')


def test_the_largest_batch_may_be_above_one_that_does_not_fit():
    """In eager code all logits at once take more than twice as many in chunks."""
    options = dict(model=full_size('gpt2'), optimizer='adamw', half=True, dropout=0.0, compiled=False)
    needed = {n: sum(planner.memory(**options, batch_size=n).values()) for n in range(1, 12)}
    assert needed[2] > needed[3] and planner.largest_batch(needed[3], **options) == 3
    for budget in needed.values():
        assert planner.largest_batch(budget, **options) == max(n for n in needed if needed[n] <= budget)


def test_checkpointing_costs_a_quarter_of_the_speed():
    plain, again = (planner.plan(full_size('gpt2'), device.GPUS['h100'], 'bfloat16',
                                 settings_of(gradient_checkpointing=value)) for value in (False, True))
    assert again['tok_s_highest'] == 0.75 * plain['tok_s_highest']
    assert again['days_lowest'] == pytest.approx(plain['days_lowest'] / 0.75)


def test_in_float32_a_gpu_has_memory_and_no_speed_and_a_cpu_has_both():
    figures = planner.plan(full_size('gpt2'), device.GPUS['h100'], 'float32', settings_of())
    assert figures['total_bytes'] > 0 and figures['tok_s_lowest'] is figures['days_highest'] is None
    cpu = device.Gpu('CPU', 0.4, 16, 0, 0)
    figures = planner.plan(full_size('gpt2'), cpu, 'float32', settings_of())
    assert figures['tok_s_lowest'] > 0 and figures['kwh_lowest'] is figures['watts'] is None
    assert not any('energy' in line for line in planner.time_lines(figures))


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows does not tell the size of the memory this way')
def test_a_cpu_is_planned_from_its_memory_and_a_matmul(monkeypatch):
    monkeypatch.setattr(roofline, 'matmul_flops', lambda device, dtype: {'bfloat16': 4e11}[dtype])
    cpu = planner.gpu_by_name('cpu', 'bfloat16')
    if sys.platform == 'linux':
        with open('/proc/meminfo') as f:
            kilobytes = int(next(line for line in f if line.startswith('MemTotal')).split()[1])
        assert cpu.memory_gb == pytest.approx(1024 * kilobytes / 1e9, rel=0.05)
    assert cpu.tflops == 0.4
    assert planner.speed(full_size('gpt2'), cpu)[1] == pytest.approx(0.79 * 4e11 / 0.855e9, rel=0.01)
    monkeypatch.delattr(planner.os, 'sysconf')
    with pytest.raises(ValueError, match='Windows'):
        planner.gpu_by_name('cpu')


def test_a_gpu_that_is_not_known_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'v100'.*v100-16gb"):
        planner.gpu_by_name('v100')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='no GPU here'):
        planner.gpu_by_name('auto')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'Some GPU of tomorrow')
    with pytest.raises(ValueError, match='no GPU here'):
        planner.gpu_by_name('auto')


def test_the_gpu_here_has_its_real_memory_and_its_peak_by_the_table(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'NVIDIA A100-SXM4-80GB')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: types.SimpleNamespace(total_memory=85.1e9))
    gpu = planner.gpu_by_name('auto')
    assert (gpu.memory_gb, gpu.tflops, gpu.watts) == (85.1, 312, 0)
    assert planner.find_mfu(gpu) == planner.MFU['A100']
