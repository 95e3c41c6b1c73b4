"""The plan against what a run takes, exact or within 10%, and against others' published runs."""
import pytest
import torch

from common import planner
from model import GPT, GPTConfig


def make_model(device='cpu', **changes):
    shape = dict(block_size=64, vocab_size=128, n_layer=3, n_head=4, n_embd=64, bias=False)
    with torch.device(device):
        return GPT(GPTConfig(**{**shape, **changes}))


GPT2 = {'gpt2': dict(n_layer=12, n_head=12, n_embd=768), 'medium': dict(n_layer=24, n_head=16, n_embd=1024),
        'large': dict(n_layer=36, n_head=20, n_embd=1280), 'xl': dict(n_layer=48, n_head=25, n_embd=1600)}


def full_size(name, **changes):
    return make_model('meta', block_size=1024, vocab_size=50304, **{**GPT2[name], **changes})


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('modern', [False, True])
def test_weights_gradients_and_moments_are_counted_exactly(optimizer, modern):
    model = make_model(modern=modern)
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
    assert planner.state_bytes(model, optimizer) == (weights, gradients, moments)


@pytest.mark.parametrize('changes', [{}, {'modern': True}, {'dropout': 0.1}, {'n_layer': 12, 'n_embd': 128}])
def test_what_autograd_keeps_is_within_a_tenth(changes):
    """Counted by its hooks on saved tensors, in float32."""
    model, kept = make_model(**changes), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for block in model.transformer.h:
        block.attn.dropout = 0.0  # with it attention on a CPU is not fused

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
    logits = 4 * model.config.vocab_size  # what log-softmax gives
    config = model.config
    masks = 3 * config.n_embd * (2 * config.n_layer + 1) if config.dropout else 0  # 4 bytes each on a CPU, 1 on a GPU
    expected = idx.numel() * (config.n_layer * block + around + logits + masks)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)


def test_what_others_published_is_within_the_range():
    v100 = planner.GPUS['v100-32gb']
    low, high = planner.speed(full_size('gpt2'), v100, 1)
    assert low < 61440 / 1.097 < high  # nanoGPT issue 215: GPT-2 124M, 61,440 tokens in 1,097 ms
    assert v100.mfu[0] < 0.48 < v100.mfu[1] and v100.mfu[0] < 0.52 <= v100.mfu[1]  # Megatron-LM, DeepSpeed
    low, high = planner.speed(full_size('gpt2'), planner.GPUS['a100-40gb'], 8)
    assert low <= 295e9 / (4 * 86400) * 1.01 and 10.26e9 / (94 * 60) <= high * 1.01  # nanoGPT, llm.c


@pytest.mark.parametrize('name', GPT2)
@pytest.mark.parametrize('gpu', ['v100-16gb', 'v100-32gb'])
@pytest.mark.parametrize('checkpointing', [False, True])
def test_the_largest_batch_fits_and_the_next_one_does_not(name, gpu, checkpointing):
    options = dict(model=full_size(name), optimizer='adamw', half=True, dropout=0.0, checkpointing=checkpointing)
    budget = planner.GPUS[gpu].memory_gb * planner.GB - planner.RESERVED
    batch = planner.largest_batch(budget, **options)
    assert batch == 0 or sum(planner.memory(**options, batch_size=batch).values()) <= budget
    assert sum(planner.memory(**options, batch_size=batch + 1).values()) > budget


def test_checkpointing_and_sharding_save_memory():
    options = dict(model=full_size('large'), optimizer='adamw', half=True, dropout=0.0, batch_size=4)
    plain, again, shared = (planner.memory(**options, **more) for more in (
        {}, dict(checkpointing=True), dict(gpus=8, fsdp=True)))
    assert again['activations'] < plain['activations'] / 5 and again['weights'] == plain['weights']
    assert shared['weights'] * 8 == plain['weights'] and shared['optimizer'] * 8 == plain['optimizer']
    assert shared['activations'] == plain['activations']


def test_a_gpu_that_is_not_known_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'v100'.*v100-16gb"):
        planner.find_gpu('v100', None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='no GPU here'):
        planner.find_gpu('auto', None)
