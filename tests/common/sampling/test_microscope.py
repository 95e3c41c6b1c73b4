"""What the microscope finds in a model, against direct computation."""
import copy
import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from common import generate, scoring
from common.sampling import microscope
from model import norm, rotate, rotary

V = 60  # of the 64 ids of the model, as where a vocabulary is padded
IDS = torch.tensor([0, 5, 9, 5, 9, 33, 7, 7, 59, 12, 5])


@pytest.fixture(scope='module')
def found(model):
    return microscope.look(model, IDS, V)


@pytest.fixture(scope='module')
def trace(model):
    with torch.no_grad():
        return microscope.follow(model, IDS)


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model(ids[None], ids[None])[0][0, :, :V]


def close(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-5)


def test_looking_changes_nothing_and_leaves_no_hook(model):
    before = logits_of(model)
    microscope.look(model, IDS, V)
    assert torch.equal(logits_of(model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_residual_stream_is_the_sum_of_what_was_added(model, trace):
    with torch.no_grad():
        x, rope = model.embed(IDS[None], None)
        assert close(trace.residual[0], x[0])
        for i, block in enumerate(model.transformer.h):
            assert close(trace.residual[i + 1], trace.residual[i] + trace.attention[i] + trace.mlp[i])
            x = block(x, rope)
            assert close(trace.residual[i + 1], x[0])


def test_attention_is_the_softmax_of_queries_times_keys(model, trace, found):
    T, size = len(IDS), model.config.n_embd // model.config.n_head
    for i, block in enumerate(model.transformer.h):
        with torch.no_grad():
            q, k, _ = (y.view(T, -1, size) for y in block.attn.c_attn(block.ln_1(trace.residual[i])).split(
                model.config.n_embd, dim=1))
            if model.config.modern:
                cos_sin = rotary(torch.arange(T), size)
                q, k = rotate(norm(q), *cos_sin), rotate(norm(k), *cos_sin)
            scores = torch.einsum('qhc,khc->hqk', q, k) * block.attn.scale
        weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(dim=-1)
        assert close(found['attention'][i], weights)


@pytest.mark.parametrize('T', [1, 15, 16])
def test_every_position_is_read_whatever_the_size_of_a_head(model, T):
    """Here 4 channels: so many positions are read at once."""
    narrow = type(model)(dataclasses.replace(model.config, n_head=8)).eval()
    with torch.no_grad():
        weights = microscope.follow(narrow, IDS.repeat(2)[:T]).weights
    assert weights.shape == (2, 8, T, T) and close(weights.sum(dim=-1), torch.ones(2, 8, T))
    assert torch.equal(weights, weights.tril())


def test_the_likeliest_ids_and_the_own_one_are_the_models(model, found):
    logits = logits_of(model)
    relative = logits - logits.max(dim=1, keepdim=True).values
    assert torch.equal(found['top_ids'], logits.topk(10).indices)
    assert close(found['top_logits'], relative.topk(V).values)
    assert close(found['own_logits'], relative[:-1].gather(1, IDS[1:, None])[:, 0])
    ranks = scoring.score(model, IDS, V)[1]
    assert torch.equal(found['own_ranks'], ranks)


@pytest.mark.parametrize('top_p', [0.1, 0.5, 0.95, 1.0])
@pytest.mark.parametrize('temperature', [0.1, 0.8, 2.0])
def test_probabilities_by_the_normalizers_are_those_of_sampling(model, found, temperature, top_p):
    at = (slice(None), microscope.TEMPERATURES.index(temperature), microscope.TOP_PS.index(top_p))
    kept, normalizers = found['kept'][at], found['normalizers'][at]
    shares = generate.candidates(logits_of(model), temperature, top_p=top_p)[0].softmax(dim=-1)
    assert torch.equal(kept, (shares > 0).sum(dim=1)) or temperature == 0.1  # where float32 has 0 for the least likely
    order = shares.sort(dim=1, descending=True).values
    ours = (found['top_logits'] / temperature - normalizers[:, None]).exp()
    assert close(torch.where(torch.arange(V) < kept[:, None], ours, 0), order)


def test_the_lens_is_the_model_that_ends_there(model, found):
    for layer in range(3):
        shorter = copy.deepcopy(model)
        shorter.transformer.h = shorter.transformer.h[:layer]
        probabilities = logits_of(shorter).softmax(dim=-1)
        top = probabilities.topk(5)
        assert torch.equal(found['lens_ids'][layer], top.indices) and close(found['lens_probs'][layer], top.values)
        own = probabilities[:-1].gather(1, IDS[1:, None])
        assert close(found['lens_own'][layer], own[:, 0])
        assert torch.equal(found['lens_ranks'][layer], (probabilities[:-1] > own).sum(dim=1) + 1)


def test_the_parts_add_up_to_the_logit(model, found):
    logits = logits_of(model)[:-1]
    wanted = logits.gather(1, IDS[1:, None])[:, 0] - logits.mean(dim=1)
    assert close(found['parts'].sum(dim=0), wanted)
    assert found['parts'].shape == (6, 10) and found['parts'].abs().max() > 0.05
    assert (found['parts'][-1].abs().max() > 0) == (not model.config.modern)  # the last norm's bias


def test_a_part_is_what_the_logit_loses_without_it_where_the_norm_stays(model, trace, found):
    """The heads' parts likewise: with the projection's bias they are the attention's."""
    final, last = trace.residual[-1, :-1], model.transformer.ln_f
    deviation = final.std(dim=1, correction=0, keepdim=True)

    def logit(x):
        scaled = (x - x.mean(dim=1, keepdim=True)) / deviation
        if last.weight is not None:
            scaled = scaled * last.weight + last.bias
        logits = scaled @ model.lm_head.weight[:V].T
        return logits.gather(1, IDS[1:, None])[:, 0] - logits.mean(dim=1)

    with torch.no_grad():
        whole, size = logit(final), model.config.n_embd // 2
        for i, block in enumerate(model.transformer.h):
            assert close(found['parts'][1 + 2 * i], whole - logit(final - trace.attention[i, :-1]))
            assert close(found['parts'][2 + 2 * i], whole - logit(final - trace.mlp[i, :-1]))
            for head in range(2):
                alone = torch.zeros_like(trace.heads[i, :-1])
                alone[:, head * size:][:, :size] = trace.heads[i, :-1, head * size:][:, :size]
                added = alone @ block.attn.c_proj.weight.T
                assert close(found['head_parts'][i, head], whole - logit(final - added))


def test_a_head_off_is_a_model_whose_projection_ignores_it(model, found):
    before = F.cross_entropy(logits_of(model)[:-1], IDS[1:], reduction='none')
    size = model.config.n_embd // 2
    for layer in range(2):
        for head in range(2):
            without = copy.deepcopy(model)
            with torch.no_grad():
                without.transformer.h[layer].attn.c_proj.weight[:, head * size:][:, :size] = 0
            after = F.cross_entropy(logits_of(without)[:-1], IDS[1:], reduction='none')
            assert close(found['ablation'][layer, head], after - before)
    assert found['ablation'].abs().max() > 0.01


def test_few_heads_at_once_and_few_logits_change_only_rounding(model, found, monkeypatch):
    monkeypatch.setattr(microscope, 'TOKENS_AT_ONCE', 1)
    monkeypatch.setattr(microscope, 'LOGITS_AT_ONCE', 3 * V)
    again = microscope.look(model, IDS, V)
    assert all(close(again[key].float(), found[key].float()) for key in found)


@pytest.mark.parametrize('kind', range(4))
def test_a_head_is_scored_by_where_it_looks(model, monkeypatch, kind):
    """Of a model in which each head looks at the previous token, the first, the same, or what followed it."""
    weights = torch.zeros(2, 2, 16, 16)
    for at in range(16):
        weights[..., at, max(0, [at - 1, 0, at - 8, at - 7][kind])] = 1

    def follow(model, ids):
        assert torch.equal(ids[:8], ids[8:]) and len(ids.unique()) == 8  # the context holds 16
        return microscope.Trace(*[None] * 4, weights=weights, rope=None)
    monkeypatch.setattr(microscope, 'follow', follow)
    scores = microscope.head_scores(model, weights if kind < 2 else torch.zeros(2, 2, 16, 16), V)
    assert torch.equal(scores, F.one_hot(torch.tensor(kind), 4).float().expand(2, 2, 4))


def test_a_context_that_is_too_short_names_no_head(model):
    short = copy.deepcopy(model)
    short.crop_block_size(4)
    weights = torch.ones(2, 2, 8, 8)
    assert not microscope.head_scores(short, weights, V).any() and not microscope.head_scores(model, weights, 2).any()
    uniform = (torch.ones(16, 16).tril() / torch.arange(1, 17)[:, None]).expand(2, 2, 16, 16)
    assert microscope.head_scores(short, uniform, V).max() < 0.12
    assert microscope.look(short, IDS, V)['attention'].shape == (2, 2, 4, 4)


def test_the_nearest_are_those_with_the_largest_cosine(model, found):
    rows = model.transformer.wte.weight[:V].detach()
    for i, one in enumerate(IDS.unique().tolist()):
        cosines = F.cosine_similarity(rows[one], rows)
        order = [other for other in cosines.argsort(descending=True).tolist() if other != one][:10]
        assert found['near_ids'][i].tolist() == order and close(found['near_cosines'][i], cosines[order])


def test_the_map_keeps_the_distances_of_what_lies_in_a_plane():
    torch.manual_seed(0)
    plane, angles = torch.linalg.qr(torch.randn(8, 2))[0].T, torch.rand(12) * 6
    directions = torch.stack((angles.cos(), angles.sin()), dim=1) @ plane
    places = microscope.draw_map(3 * directions)  # of any length
    assert close(torch.cdist(places, places), torch.cdist(directions, directions))
    assert close(places.mean(dim=0), torch.zeros(2))
    assert microscope.draw_map(torch.ones(1, 8)).shape == (1, 2)


def test_a_large_vocabulary_has_a_map_of_the_tokens_of_the_text(model, found, monkeypatch):
    assert found['map_ids'].tolist() == list(range(V)) and found['map_places'].shape == (V, 2)
    for largest, expected in ((V, range(V)), (V - 1, sorted(set(IDS.tolist())))):
        monkeypatch.setattr(microscope, 'MAPPED', largest)
        assert microscope.look(model, IDS, V)['map_ids'].tolist() == list(expected)


def test_the_picture_of_positions(model, found):
    if model.config.modern:
        assert close(found['positions'], rotary(torch.arange(len(IDS)), 16)[0])
    else:
        rows = model.transformer.wpe.weight.detach()
        assert close(found['positions'], F.cosine_similarity(rows[:, None], rows, dim=-1))


@pytest.mark.parametrize('T, n, m', [(2, 2, 1), (16, 16, 15), (17, 16, 16), (40, 16, 16)])
def test_the_context_and_a_limit_say_how_much_is_looked_at(model, monkeypatch, T, n, m):
    ids = torch.arange(T)
    found = microscope.look(model, ids, V)
    assert found['attention'].shape == (2, 2, n, n) and found['own_ranks'].shape == (m,)
    assert found['parts'].shape == (6, m) and found['ablation'].shape == (2, 2, m)
    monkeypatch.setattr(microscope, 'LARGEST', 2)
    assert microscope.look(model, ids, V)['attention'].shape == (2, 2, 2, 2)
