"""Muon against torch.optim.Muon and AdamW against torch.optim.AdamW, in one optimizer; scaled, skipped, saved."""
import copy
import math

import pytest
import torch

from common.training.muon import orthogonalize
from model import GPT, GPTConfig

CONFIG = GPTConfig(block_size=16, vocab_size=32, n_layer=2, n_head=2, n_embd=32, bias=False, modern=True)


def make(dtype=torch.float32, weight_decay=0.1):
    """A modern GPT whose weights are all far from zero, and its optimizer."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, model.configure_optimizers(weight_decay, 1e-2, (0.9, 0.95), 'cpu', muon_lr=0.02, muon_dtype=dtype)


def set_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def pieces(name, p):
    """The matrices that Muon orthogonalizes apart: query, key and value of the fused projection, or the whole."""
    return p.chunk(3) if 'c_attn' in name else (p,)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_matrices_move_as_torch_muon_moves_them(dtype):
    model, ours = make(dtype)
    names = [name for name, p in model.transformer.h.named_parameters() if p.dim() == 2]
    parameters = dict(model.transformer.h.named_parameters())
    copies = {(name, i): torch.nn.Parameter(piece.clone()) for name in names
              for i, piece in enumerate(pieces(name, parameters[name].detach()))}
    theirs = torch.optim.Muon(copies.values(), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    for step in range(3):
        set_gradients(model, step)
        for (name, i), p in copies.items():
            p.grad = pieces(name, parameters[name].grad)[i].clone()
        ours.step()
        theirs.step()
    # torch.optim.Muon iterates in bfloat16; in the same dtype the two agree to a rounding, else to that dtype's steps
    tolerance = 1e-3 if dtype == torch.bfloat16 else 4e-3
    for (name, i), p in copies.items():
        moved = pieces(name, parameters[name])[i]
        assert (moved - p).abs().max() < tolerance, name


def test_all_else_moves_as_torch_adamw_moves_it():
    model, ours = make()
    reference = copy.deepcopy(model)
    rest = [p for name, p in reference.named_parameters() if not (name.startswith('transformer.h') and p.dim() == 2)]
    theirs = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        set_gradients(model, step)
        set_gradients(reference, step)
        ours.step()
        theirs.step()
    others = [p for name, p in model.named_parameters() if not (name.startswith('transformer.h') and p.dim() == 2)]
    assert len(others) == len(rest) == 3  # embedding, head, smear
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(others, rest))


def test_orthogonalized_singular_values_are_about_one():
    torch.manual_seed(0)
    for shape in ((4, 48, 48), (2, 96, 24), (2, 24, 96)):
        x = torch.randn(shape)
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        result = orthogonalize(x, torch.float32)
        singular = torch.linalg.svdvals(result)
        assert result.shape == x.shape and 0.2 < singular.min() and singular.max() < 1.3
        # with the same singular vectors: the product with the exact orthogonal factor is near the identity
        assert torch.linalg.matrix_norm(result - left @ right).max() / shape[-1]**0.5 < 0.5


def test_every_parameter_is_in_one_group_only():
    for modern in (True, False):
        model = GPT(GPTConfig(**{**vars(CONFIG), 'modern': modern, 'bias': not modern}))
        optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu', muon_lr=0.02, muon_dtype=torch.float32)
        grouped = [id(p) for group in optimizer.param_groups for p in group['params']]
        assert sorted(grouped) == sorted(map(id, model.parameters()))
        assert all(p.dim() == 2 for group in optimizer.param_groups if group['pieces'] for p in group['params'])


def test_a_skipped_update_changes_nothing():
    model, optimizer = make()
    set_gradients(model)
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()['state']))
    for p in model.parameters():
        p.grad = torch.full_like(p, float('nan'))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    states = zip(optimizer.state_dict()['state'].values(), before[1].values(), strict=True)
    for now, then in ((model.state_dict(), before[0]), *states):
        assert all(torch.equal(now[key], then[key]) for key in then)
    optimizer.found_inf = torch.tensor(0.0)
    set_gradients(model, 1)
    optimizer.step()
    assert not any(torch.equal(p, before[0][name]) for name, p in model.named_parameters())


def test_grad_scaler_scales_and_skips():
    model, optimizer = make()
    reference, plain = make()
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    idx = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    for inf in (False, True, False):
        for m, scale in ((model, True), (reference, False)):
            loss = m(idx, idx)[1]
            (scaler.scale(loss) if scale else loss).backward()
        if inf:
            model.transformer.h[0].mlp.c_fc.weight.grad[0, 0] = float('inf')
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if not inf:
            plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    assert scaler.get_scale() == 512.0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), reference.parameters()))


def test_the_recipe_learns_in_float16_with_loss_scaling_as_in_float32():
    """The V100's way: float16 with GradScaler, Newton-Schulz in float32."""
    idx = torch.randint(32, (4, 17), generator=torch.Generator().manual_seed(0))
    final = {}
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        model = GPT(CONFIG)
        optimizer = model.configure_optimizers(0.0, 1e-2, (0.9, 0.95), 'cpu', muon_lr=0.02, muon_dtype=torch.float32)
        scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16)
        for step in range(30):
            with torch.autocast('cpu', dtype=dtype, enabled=dtype == torch.float16):
                loss = model(idx[:, :-1], idx[:, 1:])[1]
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        final[dtype] = loss.item()
    assert final[torch.float32] < 1.0 < math.log(32)
    assert final[torch.float16] == pytest.approx(final[torch.float32], rel=0.05)


def test_saved_and_loaded_it_goes_on_to_the_bit():
    model, optimizer = make()
    set_gradients(model)
    optimizer.step()
    twin, resumed = make()
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, resumed)):
        set_gradients(m, 1)
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_large_models_are_orthogonalized_in_several_batches(monkeypatch):
    (model, optimizer), (other, at_once) = make(), make()
    monkeypatch.setattr('common.training.muon.LARGEST_BATCH', 1000)
    set_gradients(model)
    optimizer.step()
    monkeypatch.undo()
    set_gradients(other)
    at_once.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), other.parameters()))
