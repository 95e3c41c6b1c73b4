"""The plan against what a run takes, exactly or within 10%, and against published runs of others."""
import types

import pytest
import torch

from common import device
from common.benchmark import planner
from common.settings import disk_bytes, state_bytes
from common.weights import OPENAI
from model import GPT, GPTConfig


def make_model(device='cpu', **changes):
    shape = dict(block_size=64, vocab_size=128, n_layer=3, n_head=4, n_embd=64, bias=False)
    with torch.device(device):
        return GPT(GPTConfig(**{**shape, **changes}))


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


@pytest.mark.parametrize('changes', [{}, {'modern': True}, {'dropout': 0.1}, {'n_layer': 12, 'n_embd': 128}])
def test_what_autograd_keeps_is_within_a_tenth(changes):
    """Counted by autograd's hooks on saved tensors, in float32."""
    model, kept = make_model(**changes), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for block in model.transformer.h:
        block.attn.dropout = 0.0  # else attention on a CPU is not fused

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    idx = torch.randint(128, (8, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(idx, idx)[1]
    assert loss.requires_grad
    block, around = planner.saved_bytes(model.config, False, model.config.dropout)
    logits = 4 * model.config.vocab_size  # the output of log-softmax
    config = model.config
    masks = 3 * config.n_embd * (2 * config.n_layer + 1) if config.dropout else 0  # 4 bytes each on a CPU, 1 on a GPU
    expected = idx.numel() * (config.n_layer * block + around + logits + masks)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)


def test_what_others_published_is_within_the_range():
    v100 = device.GPUS['v100-32gb']
    low, high = planner.speed(full_size('gpt2'), v100, 1)
    assert low < 61440 / 1.097 < high  # nanoGPT issue 215: GPT-2 124M, 61,440 tokens in 1,097 ms
    low, high, _ = planner.find_mfu(v100)
    assert low < 0.48 < high and low < 0.52 <= high  # Megatron-LM, DeepSpeed
    low, high = planner.speed(full_size('gpt2'), device.GPUS['a100-40gb'], 8)
    assert low <= 295e9 / (4 * 86400) * 1.01 and 10.26e9 / (94 * 60) <= high * 1.01  # nanoGPT, llm.c


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


def test_the_table_of_a_sharded_model_has_a_row_for_each_part():
    """With checkpointing FSDP keeps no 16-bit weights: 0 in the second column."""
    options = dict(model=full_size('gpt2'), optimizer='adamw', half=True, dropout=0.0, gpus=8, fsdp=True)
    lines = list(planner.memory_lines(device.GPUS['v100-16gb'], 12, options))
    assert next(line for line in lines if '16-bit weights' in line).split()[-1] == '0.00'


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
