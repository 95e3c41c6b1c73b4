"""How likely a text is, and endings of a context: against the model's own logits, window by window."""
import copy
import random

import pytest
import torch

from common import generate, scoring
from conftest import tiny_state
from model import GPT


@pytest.fixture
def seen(model):
    """The number of tokens, padding too, in each call of the model."""
    counts = []
    hook = model.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel()))
    yield counts
    hook.remove()


def logprobs_after(model, ids, vocab_size=None):
    """The log-probabilities (V,) of what comes after ids, a list, by one call of the model."""
    with torch.no_grad():
        return model(torch.tensor([ids]))[0][0, -1, :vocab_size].log_softmax(dim=-1)


@pytest.mark.parametrize('T', [2, 9, 17, 18, 50])
def test_each_token_is_scored_with_all_before_it_or_half_a_context(model, T):
    ids = torch.randint(64, (T,))
    logprobs, ranks = scoring.score(model, ids)
    assert len(logprobs) == len(ranks) == T - 1
    for i in range(1, T):
        # windows of 16 begin at 0, and later so that the first token they score has 8 before it, the last 16
        window = 0 if i <= 16 else 9 * ((i - 17) // 9 + 1)
        expected = logprobs_after(model, ids[window:i].tolist())
        assert logprobs[i - 1].item() == pytest.approx(expected[ids[i]].item(), abs=1e-5)
        assert ranks[i - 1] == 1 + (expected > expected[ids[i]]).sum()


@pytest.mark.parametrize('T', [2, 16, 17, 18, 33, 34, 50])
def test_windows_that_do_not_overlap_score_each_token_once(model, seen, T):
    ids = torch.randint(64, (T,))
    logprobs, ranks = scoring.score(model, ids, context=1)
    assert sum(seen) == len(logprobs) == len(ranks) == T - 1
    for i in range(1, T):
        expected = logprobs_after(model, ids[(i - 1) // 16 * 16:i].tolist())
        assert logprobs[i - 1].item() == pytest.approx(expected[ids[i]].item(), abs=1e-5)
        assert ranks[i - 1] == 1 + (expected > expected[ids[i]]).sum()


@pytest.mark.parametrize('context', [None, 1, 16])
@pytest.mark.parametrize('limit', [{'MOST_TOKENS': 1}, {'MOST_TOKENS': 40}, {'MOST_LOGITS': 40 * 64}])
def test_how_many_windows_go_together_changes_only_rounding(model, seen, monkeypatch, context, limit):
    ids = torch.randint(64, (200,))
    together = scoring.score(model, ids, context=context)
    calls = len(seen)
    for name, value in limit.items():
        monkeypatch.setattr(scoring, name, value)
    logprobs, ranks = scoring.score(model, ids, context=context)
    assert torch.allclose(logprobs, together[0], atol=1e-5) and torch.equal(ranks, together[1])
    assert calls <= 3 and len(seen) - calls > 6 and max(seen[calls:]) <= 40


# endings of a context

def directly(model, context, ending, vocab_size=None):
    """(log-probability, whether greedy) of an ending, token by token from what the model sees before each."""
    size, whole, total, greedy = model.config.block_size, context + ending, 0.0, True
    step = size if len(ending) <= size else (size + 1) // 2  # ids that are scored together
    for i, token in enumerate(ending):
        last = min(len(ending), i // step * step + step)  # of those that are scored with this one
        begin = max(0, len(context) + last - 1 - size)
        logprobs = logprobs_after(model, whole[begin:len(context) + i], vocab_size)
        total, greedy = total + logprobs[token].item(), greedy and logprobs.argmax().item() == token
    return total, greedy


def continued(model, context, count, vocab_size=None):
    """The ending that the model itself would write."""
    ids = list(context)
    for _ in range(count):
        ids.append(logprobs_after(model, ids, vocab_size).argmax().item())
    return ids[len(context):]


def some_ids(rng, count, vocab_size=64):
    return [rng.randrange(vocab_size) for _ in range(count)]


def assert_as_directly(model, groups, vocab_size=None):
    found = dict(scoring.score_endings(model, groups, vocab_size))
    assert sorted(found) == list(range(len(groups)))
    for number, (context, endings) in enumerate(groups):
        for (logprob, greedy), ending in zip(found[number], endings, strict=True):
            expected = directly(model, context, ending, vocab_size)
            assert logprob == pytest.approx(expected[0], abs=1e-4) and greedy == expected[1], (number, ending)
    return found


def test_endings_are_as_likely_as_the_model_says(model):
    """Contexts of all lengths in one batch, so that most are padded, with endings of one token and of several."""
    rng = random.Random(0)
    groups = [(context, [some_ids(rng, rng.randrange(1, 5)) for _ in range(rng.randrange(1, 5))])
              for context in (some_ids(rng, length) for length in [3, 12, 1, 7, 7, 5, 11, 2])]
    found = assert_as_directly(model, groups)
    backwards = dict(scoring.score_endings(model, groups[::-1]))
    for number, scores in found.items():
        for one, other in zip(scores, backwards[len(groups) - 1 - number], strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_what_the_model_would_write_is_called_so(model):
    """Also an ending whose beginning alone, or whose end alone, it would write."""
    rng, groups = random.Random(1), []
    for length in (1, 4, 9):
        context = some_ids(rng, length)
        written = continued(model, context, 4)
        other = [*written[:-1], (written[-1] + 1) % 64]
        late = [(written[0] + 1) % 64]
        groups.append((context, [written, written[:1], other, late + continued(model, context + late, 3)]))
    found = assert_as_directly(model, groups)
    assert [[greedy for _, greedy in found[number]] for number in range(3)] == [[True, True, False, False]] * 3


@pytest.mark.parametrize('before, after', [(16, 1), (15, 2), (16, 2), (17, 1), (40, 3), (5, 16), (1, 16), (1, 17),
                                           (3, 20), (20, 40)])
def test_what_does_not_fit_loses_its_beginning(model, before, after):
    """(before, after): the tokens of context and ending; 16 and 1 is the most that the model can see at once."""
    rng = random.Random(2)
    context = some_ids(rng, before)
    groups = [(context, [some_ids(rng, after), some_ids(rng, 1), some_ids(rng, after)]), (some_ids(rng, 2), [[1, 2]])]
    assert_as_directly(model, groups)


def test_a_long_ending_that_the_model_would_write_is_greedy_in_all_its_pieces(model):
    context, ending = [5, 6], []
    for i in range(20):  # by the windows of directly()
        begin = max(0, 2 + min(20, i // 8 * 8 + 8) - 17)
        ending.append(logprobs_after(model, (context + ending)[begin:]).argmax().item())
    others = [[*ending[:i], (ending[i] + 1) % 64, *ending[i + 1:]] for i in (0, 10, 19)]
    found = assert_as_directly(model, [(context, [ending, *others])])
    assert [greedy for _, greedy in found[0]] == [True, False, False, False]


@pytest.mark.parametrize('limit', [{'MOST_TOKENS': 1}, {'MOST_TOKENS': 30}, {'MOST_LOGITS': 30 * 64},
                                   {'CACHE_BYTES': 20_000}])
def test_how_many_contexts_go_together_changes_only_rounding(model, seen, monkeypatch, limit):
    rng = random.Random(3)
    groups = [(some_ids(rng, rng.randrange(1, 14)), [some_ids(rng, rng.randrange(1, 4)) for _ in range(3)])
              for _ in range(20)]
    together = dict(scoring.score_endings(model, groups))
    calls = len(seen)
    for name, value in limit.items():
        monkeypatch.setattr(scoring, name, value)
    apart = dict(scoring.score_endings(model, groups))
    assert len(seen) - calls > calls
    assert 'MOST_TOKENS' not in limit or max(seen[calls:]) <= max(limit['MOST_TOKENS'], 13)
    for number, scores in together.items():
        for one, other in zip(scores, apart[number], strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_a_short_context_does_not_share_a_batch_in_which_its_padding_has_no_position(model):
    """A long context with a short ending, and a short one with a long ending, each of which fits alone."""
    rng = random.Random(4)
    assert_as_directly(model, [(some_ids(rng, 16), [some_ids(rng, 1)]), (some_ids(rng, 2), [some_ids(rng, 15)])])


def test_many_endings_of_one_context_go_in_several_batches(model, seen, monkeypatch):
    """As texts that all follow the same first token."""
    monkeypatch.setattr(scoring, 'MOST_TOKENS', 30)
    rng = random.Random(7)
    groups = [([1], [some_ids(rng, rng.randrange(1, 7)) for _ in range(23)]), ([2, 3], [[4], [5]])]
    assert_as_directly(model, groups)
    # the last few go with the other context
    seen.clear()
    list(scoring.score_endings(model, groups))
    assert max(seen) <= 30 and sum(seen) <= 23 * 5 + 12


def test_a_long_ending_makes_no_later_batch_small(model, seen, monkeypatch):
    monkeypatch.setattr(scoring, 'MOST_TOKENS', 30)
    groups = [([1] * 8, [[2] * 9])] + [([1], [[2]])] * 20
    list(scoring.score_endings(model, groups))
    assert seen == [3 * 8, 3 * 8, 18], 'one batch with the long ending, as wide as 30 allows, and one of all the others'


def test_a_context_is_computed_once_for_all_its_endings(model, seen):
    rng = random.Random(5)
    context = some_ids(rng, 14)  # with endings of 3 it just fits: their last id predicts nothing
    list(scoring.score_endings(model, [(context, [some_ids(rng, 3) for _ in range(4)])]))
    assert seen == [14, 4 * 2]
    seen.clear()
    list(scoring.score_endings(model, [(context, [some_ids(rng, 1) for _ in range(4)])]))
    assert seen == [14], 'endings of one token need no second call'


def test_groups_come_as_they_are_done_the_longest_contexts_first(model, monkeypatch):
    monkeypatch.setattr(scoring, 'MOST_TOKENS', 1)
    groups = [([1] * length, [[2], [3]]) for length in (2, 9, 5)]
    assert [number for number, _ in scoring.score_endings(model, groups)] == [1, 2, 0]


def test_no_groups_are_no_work(model, seen):
    assert list(scoring.score_endings(model, [])) == [] and seen == []


def test_ids_that_only_pad_the_vocabulary_have_no_probability(model):
    """GPT-2's 50257 ids are padded to 50304; the padding must neither take probability nor be what would be written."""
    padded = copy.deepcopy(model)
    with torch.no_grad():
        padded.lm_head.weight[60:] = 5 * padded.lm_head.weight[:4]
    rng = random.Random(6)
    context = some_ids(rng, 6, 60)
    groups = [(context, [some_ids(rng, 3, 60), continued(padded, context, 2, 60)])]
    within = assert_as_directly(padded, groups, vocab_size=60)
    assert within[0][0][0] > dict(scoring.score_endings(padded, groups))[0][0][0] and within[0][1][1]
    ids = torch.tensor(some_ids(rng, 40, 60))
    logprobs, ranks = scoring.score(padded, ids, vocab_size=60)
    for i in range(1, 17):
        expected = logprobs_after(padded, ids[:i].tolist(), 60)
        assert logprobs[i - 1].item() == pytest.approx(expected[ids[i]].item(), abs=1e-5)
        assert ranks[i - 1] == 1 + (expected > expected[ids[i]]).sum()


def test_probabilities_that_are_not_finite_are_refused():
    state = tiny_state()
    state['model']['transformer.h.0.mlp.c_proj.weight'][0, 0] = float('nan')
    model = GPT.from_checkpoint(state).eval()
    with pytest.raises(ValueError, match='not finite'):
        scoring.score(model, torch.tensor([0, 1, 2]))
    for endings in ([[1]], [[1, 2], [3]]):
        with pytest.raises(ValueError, match='not finite'):
            list(scoring.score_endings(model, [([0, 1], endings)]))


def test_one_token_contexts_of_long_endings_fill_no_more_than_the_cache_may_take(model, monkeypatch):
    sizes, original = [], generate.KVCache
    monkeypatch.setattr(generate, 'KVCache', lambda size, padding: sizes.append(size) or original(size, padding))
    monkeypatch.setattr(scoring, 'CACHE_BYTES', 4 * 16 * scoring.bytes_per_token(model))
    groups = [([i], [some_ids(random.Random(i), 16)]) for i in range(20)]
    assert_as_directly(model, groups)
    assert sizes == [16] * 5


@pytest.mark.parametrize('size', [3, 20])
def test_of_equally_likely_ids_a_model_writes_one(model, size):
    """As a model that has learned nothing, or in 16 bits."""
    state = model.lm_head.weight.detach().clone()
    model.lm_head.weight.data.zero_()
    first = logprobs_after(model, [1]).argmax().item()
    others = [i for i in range(size) if i != first]
    found = dict(scoring.score_endings(model, [([1], [[first], [others[0]], [first, others[1]]])]))[0]
    ranks = scoring.score(model, torch.tensor([1, first, *others]))[1].tolist()
    model.lm_head.weight.data.copy_(state)
    assert [greedy for _, greedy in found] == [True, False, False]
    assert ranks == [1] + [2] * len(others)
