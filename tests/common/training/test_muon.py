"""
Muon against torch.optim.Muon and AdamW against torch.optim.AdamW, in one optimizer; in float16, scaled, skipped, saved,
and shared among ranks.
"""
import copy
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from common.training import muon
from common.training.muon import orthogonalize
from conftest import slow
from model import GPT, GPTConfig
from running import ROOT, ok, ranks

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
def test_matrices_move_as_torch_muon_moves_them(dtype, monkeypatch):
    if dtype == torch.float32:  # torch.optim.Muon iterates in bfloat16; it would in float32 if it did not cast
        monkeypatch.setattr(torch.Tensor, 'bfloat16', lambda x: x)
    monkeypatch.setattr(muon, 'COEFFICIENTS', ((3.4445, -4.7750, 2.0315),) * 5)  # theirs
    monkeypatch.setattr(muon, 'SMALL', 0)
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
    tolerance = 4e-3 if dtype == torch.bfloat16 else 1e-6
    for (name, i), p in copies.items():
        moved = pieces(name, parameters[name])[i]
        assert (moved - p).abs().max() < tolerance, name


def test_all_else_moves_as_torch_adamw_moves_it():
    model, ours = make()
    reference = copy.deepcopy(model)
    rest = [p for name, p in reference.named_parameters() if not (name.startswith('transformer.h') and p.dim() == 2)]
    theirs = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-10)
    for step in range(3):
        set_gradients(model, step)
        set_gradients(reference, step)
        ours.step()
        theirs.step()
    others = [p for name, p in model.named_parameters() if not (name.startswith('transformer.h') and p.dim() == 2)]
    assert len(others) == len(rest) == 3  # embedding, head, smear
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(others, rest))


@pytest.mark.parametrize('small', [True, False])
def test_orthogonalized_singular_values_are_about_one(small, monkeypatch):
    """As Polar Express says: from 0.001 on within 0.13 and 1.87 after three steps, within 0.15 of 1 after five."""
    monkeypatch.setattr(muon, 'SMALL', 256 * small)
    generator = torch.Generator().manual_seed(0)
    for m, n in ((48, 48), (24, 96), (24, 47), (96, 24)):
        left, _, right = torch.linalg.svd(torch.randn((2, m, n), generator=generator, dtype=torch.float64), False)
        values = torch.logspace(-3, 0, min(m, n), dtype=torch.float64)
        values *= 0.99 / torch.linalg.vector_norm(values)
        x = left * values.clamp(min=1e-3) @ right
        result = orthogonalize(5 * x.float(), torch.float32).double()
        turned = left.mT @ result @ right.mT  # diagonal, if the singular vectors are the same
        singular = turned.diagonal(dim1=1, dim2=2)
        assert result.shape == x.shape and (turned - torch.diag_embed(singular)).abs().max() < 2e-3
        lowest, highest = (0.13, 1.87) if small else (0.85, 1.13)
        assert lowest < singular.min() and singular.max() < highest, (m, n)


def test_the_gram_matrix_gives_the_same_steps():
    torch.manual_seed(0)
    x = torch.randn(3, 24, 96) * torch.tensor([1.0, 1e-3, 1.0]).view(3, 1, 1)
    x[2] = torch.randn(24, 1) * torch.randn(96) + 1e-3 * x[2]  # of rank 1, nearly
    x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    for steps in (muon.COEFFICIENTS[:3], muon.COEFFICIENTS):
        assert torch.allclose(muon.iterate_gram(x, steps), muon.iterate(x, steps), atol=1e-3)
    assert torch.equal(orthogonalize(x, torch.float32), muon.iterate_gram(x / torch.linalg.vector_norm(
        x, dim=(1, 2), keepdim=True), muon.COEFFICIENTS[:3]))


class TensorCores(TorchFunctionMode):
    """Products as a GPU's tensor cores make them from 16-bit matrices: summed in float32, and rounded once."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.bmm, torch.baddbmm):
            return func(*(matrix.float() for matrix in args), **kwargs).to(args[0].dtype)
        return func(*args, **kwargs)


def spectra(m, n):
    """Gradients (3, m, n): Gaussian; of rank 8, with noise; with rows whose sizes span three decades."""
    generator = torch.Generator().manual_seed(0)
    noise, left, right = (torch.randn(shape, generator=generator) for shape in ((m, n), (m, 8), (8, n)))
    return torch.stack([noise, left @ right + 0.1 * noise, torch.logspace(0, -3, m).view(-1, 1) * noise])


def errors(matrices, dtype, exact):
    """The relative error of each orthogonalized matrix in `dtype`."""
    with TensorCores():
        result = orthogonalize(matrices, dtype).float()
    return torch.linalg.matrix_norm(result - exact) / torch.linalg.matrix_norm(exact)


# GPT-2's attention and MLP at 768 channels, and the attention of gpt2-xl, of rank 8 with noise only
# (the polynomials are steeper than one that is taken five times, and so is what rounding does to them)
@pytest.mark.parametrize('m, n', [(96, 96), (96, 384), slow(768, 768), slow(768, 3072), slow(1600, 1600)])
def test_float16_is_more_exact_than_bfloat16_at_any_scale_of_the_gradient(m, n):
    matrices, tolerance = spectra(m, n), torch.tensor([0.006, 0.012, 0.006])
    if m == 1600:
        matrices, tolerance = matrices[1:2], tolerance[1:2]
    exact = orthogonalize(matrices, torch.float32)
    in_bfloat16 = errors(matrices, torch.bfloat16, exact)
    for scale in (1e-8, 1e-4, 1.0, 1e3) if m < 1600 else (1e-8,):
        in_float16 = errors(scale * matrices, torch.float16, exact)
        assert (in_float16 < tolerance).all() and (in_float16 < in_bfloat16 / 4).all()


def test_matrices_without_any_gradient_stay_zero_and_none_is_too_small():
    torch.manual_seed(0)
    x = torch.randn((4, 8, 16)) * torch.tensor([0.0, 1e-30, 1e-12, 1e30]).view(4, 1, 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        result = orthogonalize(x, dtype)
        assert torch.isfinite(result).all() and not result[0].any()
        assert torch.linalg.svdvals(result[2].float()).min() > 0.13


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


class Launches(TorchDispatchMode):
    """How many operations are more than a view or new memory: on a GPU each of them launches a kernel, or a few."""
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and 'empty' not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_more_layers_take_no_more_kernel_launches(dtype):
    counts = []
    for n_layer in (2, 12):
        model = GPT(GPTConfig(**{**vars(CONFIG), 'n_layer': n_layer}))
        optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu', muon_lr=0.02, muon_dtype=dtype)
        optimizer.found_inf = torch.tensor(0.0)
        for step in range(2):
            set_gradients(model, step)
            with Launches() as launches:
                optimizer.step()
        counts.append(launches.count)  # of the second step: the first one makes the state
    assert counts[0] == counts[1] < 100


# run(): steps of MuonAdamW in this process or in two; `split` as FSDP splits parameters, here unevenly
STEPS = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

sys.path.insert(0, {root!r})
from common.training import muon

seen, original = [], muon.orthogonalize
muon.orthogonalize = lambda x, dtype: seen.extend(m for m in x if m.any()) or original(x, dtype)


def run(dtype, split=False):
    generator, mesh = torch.Generator().manual_seed(0), split and init_device_mesh('cpu', (2,))
    place = lambda x: distribute_tensor(x, mesh, [Shard(0)]) if split else x
    whole = lambda x: x.full_tensor() if isinstance(x, DTensor) else x.detach()
    shapes = [(15, 5), (15, 5), (5, 5), (20, 5), (5, 20), (5, 5), (20, 5), (5, 20), (15, 5), (5, 5), (20, 5)]
    params = [torch.nn.Parameter(place(torch.randn(shape, generator=generator))) for shape in shapes]
    groups = [dict(params=[p for p in params if (p.size(0) == 15) == fused], pieces=3 if fused else 1, lr=0.02,
                   weight_decay=0.1) for fused in (True, False)]
    optimizer = muon.MuonAdamW([*groups, dict(params=[torch.nn.Parameter(torch.zeros(1))])], dtype, lr=0.01)
    for inf in (0.0, 0.0, 1.0, 0.0):
        for p in params:
            p.grad = place(torch.randn(p.shape, generator=generator) * (float('nan') if inf else 1.0))
        optimizer.found_inf = torch.tensor(inf)
        optimizer.step()
    return [whole(p) for p in params] + [whole(optimizer.state[p]['momentum_buffer']) for p in params]
"""


def test_two_ranks_share_the_matrices_and_step_as_one_does(tmp_path, monkeypatch):
    """With the whole parameters on each rank, as DDP has them, and with some rows of each, as FSDP."""
    monkeypatch.setattr(muon, 'orthogonalize', muon.orthogonalize)  # restores it after the next line
    exec(STEPS.format(root=ROOT), alone := {})
    expected = alone['run'](torch.float32)
    script = tmp_path / 'steps.py'
    script.write_text(STEPS.format(root=ROOT) + """
dist.init_process_group('gloo')
results = [run(dtype, split) for split in (False, True) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
torch.save((results, len(seen)), f'{dist.get_rank()}.pt')
dist.barrier()
""")
    for done in ranks(2, script, cwd=tmp_path):
        ok(done)
    (results, first), (others, second) = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    # in each of 4 steps 9 pieces of fused matrices, 3 square ones, 3 tall and 2 wide ones; the 5 are 3 + 2 on 2 ranks
    assert len(alone['seen']) == 4 * (9 + 3 + 3 + 2)
    assert (first, second) == (6 * 4 * (6 + 3), 6 * 4 * (6 + 2))
    for result, other, tolerance in zip(results, others, 2 * (1e-5, 1e-3, 1e-2), strict=True):
        for ours, theirs, same in zip(result, expected, other, strict=True):
            assert torch.equal(ours, same) and (ours - theirs).abs().max() < tolerance
