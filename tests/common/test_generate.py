"""From logits to ids: greedy, filtered, seeded, only ids of the tokenizer, and the same with the cache."""
import copy

import pytest
import torch

from common import generate
from model import GPT, GPTConfig


def make_model(**changes):
    torch.manual_seed(0)
    shape = dict(block_size=16, vocab_size=64, n_layer=2, n_head=2, n_embd=32)
    model = GPT(GPTConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        if model.config.modern:  # each token back has a share in what is written
            model.smear.mul_(torch.tensor([[2.0], [3.0], [4.0]]))
    return model


@pytest.fixture(scope='module')
def model():
    return make_model()


@pytest.fixture(scope='module', params=[False, True], ids=['classic', 'modern'])
def long_model(request):
    return make_model(block_size=48, modern=request.param)


def test_temperature_zero_is_greedy(model):
    idx = torch.randint(64, (3, 4))
    written = model.generate(idx, 5, temperature=0)
    for step in range(4, 9):
        expected = model(written[:, :step])[0][:, -1].argmax(dim=-1)
        assert torch.equal(written[:, step], expected)


def test_filters_keep_what_hugging_face_keeps():
    transformers = pytest.importorskip('transformers')
    logits, idx = 3 * torch.randn(50, 64), torch.randint(64, (50, 9))
    for ours, theirs, values in ((generate.filter_top_p, transformers.TopPLogitsWarper, (0.01, 0.5, 0.9, 0.999)),
                                 (generate.filter_min_p, transformers.MinPLogitsWarper, (0.001, 0.1, 0.5, 1.0))):
        for value in values:
            assert torch.equal(ours(logits, value), theirs(value)(None, logits)), (ours, value)
    for penalty in (0.5, 1.2, 3.0):
        expected = transformers.RepetitionPenaltyLogitsProcessor(penalty)(idx, logits)
        assert torch.equal(generate.penalize_repetition(logits, idx, penalty), expected)


def test_filters_together_keep_what_hugging_face_keeps():
    transformers = pytest.importorskip('transformers')
    logits = 3 * torch.randn(50, 64)
    for k, p, least in ((1, 0.9, 0.1), (9, 0.7, 0.2), (64, 0.5, 0.01), (1000, 0.99, 0.001)):
        expected = transformers.TemperatureLogitsWarper(0.7)(None, logits)
        for warper in (transformers.TopKLogitsWarper(k), transformers.TopPLogitsWarper(p),
                       transformers.MinPLogitsWarper(least)):
            expected = warper(None, expected)
        kept, ids = generate.candidates(logits, 0.7, top_k=k, top_p=p, min_p=least)
        whole = torch.full_like(logits, -float('inf')).scatter(1, ids, kept)
        assert torch.equal(whole.isinf(), expected.isinf())
        assert torch.allclose(whole.softmax(dim=1), expected.softmax(dim=1), atol=1e-6)


def test_filters_that_are_off_change_nothing():
    logits, idx = torch.randn(5, 64), torch.randint(64, (5, 9))
    for off in (generate.filter_top_p(logits, 1.0), generate.filter_top_p(logits, None),
                generate.filter_min_p(logits, 0.0), generate.penalize_repetition(logits, idx, 1.0)):
        assert off is logits
    for kept, ids in (generate.candidates(logits), generate.candidates(logits, top_k=0)):
        assert torch.equal(kept, logits) and ids is None


def test_every_filter_leaves_the_likeliest_id():
    logits = torch.zeros(4, 64)
    logits[:, 7] = 5.0
    for filters in (dict(top_k=1), dict(top_p=1e-9), dict(min_p=1.0), dict(top_k=5, top_p=0.01, min_p=0.9)):
        assert (generate.sample(logits, **filters) == 7).all()


def test_top_k_of_one_is_greedy(model):
    idx = torch.randint(64, (2, 4))
    assert torch.equal(model.generate(idx, 6, top_k=1), model.generate(idx, 6, temperature=0))


def test_frequencies_follow_the_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20000, 3)
    drawn = generate.sample(logits, temperature=2.0, generator=torch.Generator().manual_seed(0))
    frequencies = torch.bincount(drawn.flatten(), minlength=3) / 20000
    assert torch.allclose(frequencies, torch.softmax(logits[0] / 2, dim=-1), atol=0.02)


def test_padded_ids_are_never_drawn(model):
    idx = torch.zeros(50, 1, dtype=torch.long)
    assert model.generate(idx, 10, temperature=100.0).max() >= 40
    assert model.generate(idx, 10, temperature=100.0, vocab_size=40).max() < 40


def test_the_same_seed_writes_the_same(model):
    idx = torch.zeros(1, 1, dtype=torch.long)
    first, second, other = (model.generate(idx, 30, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('options', [dict(temperature=0), dict(top_k=20), dict(top_p=0.8, repetition_penalty=1.3)])
def test_the_cache_changes_no_token(long_model, batch, options):
    idx = torch.randint(64, (batch, 5))
    written = [long_model.generate(idx, 40, use_cache=use_cache, generator=torch.Generator().manual_seed(1), **options)
               for use_cache in (True, False)]
    assert torch.equal(*written)


def test_the_cache_changes_no_logit_in_whatever_pieces_the_ids_come(long_model):
    idx = torch.randint(64, (4, 30))
    for sizes in ([30], [1] * 30, [2] * 15, [5] * 6, [7, 1, 1, 12, 9], [1, 29]):
        cache, at = generate.KVCache(30), 0
        for size in sizes:
            at += size
            logits = generate.feed(long_model, idx[:, at - size:at], cache)
            assert torch.allclose(logits, long_model(idx[:, :at])[0][:, -1], atol=1e-5)


@pytest.mark.parametrize('pieces', [[12], [1] * 12, [2] * 6, [5, 5, 2], [9, 3]])
def test_with_padding_the_cache_changes_no_logit_in_whatever_pieces_the_ids_come(long_model, pieces):
    """A row begins in the middle of a piece, or after several of nothing but padding."""
    idx, padding = torch.randint(64, (5, 12)), torch.tensor([0, 1, 3, 6, 10])
    cache, at = generate.KVCache(12, padding), 0
    for size in pieces:
        logits = generate.feed(long_model, idx[:, at:at + size], cache)
        at += size
        for row, pad in enumerate(padding.tolist()):
            if pad < at:
                expected = long_model(idx[row:row + 1, pad:at])[0][0, -1]
                assert torch.allclose(logits[row], expected, atol=1e-4), (row, at)


@pytest.mark.parametrize('seen', [1, 2, 9])
def test_rows_that_are_dropped_and_repeated_go_on_as_they_began(long_model, seen):
    """As beams do, of texts shorter than the smear, too."""
    idx, rows = torch.randint(64, (3, 12)), torch.tensor([2, 0, 2])
    cache = generate.KVCache(12)
    generate.feed(long_model, idx[:, :seen], cache)
    cache.reorder(rows)
    logits = generate.feed(long_model, idx[:, seen:seen + 2], cache)
    expected = long_model(torch.cat((idx[rows, :seen], idx[:, seen:seen + 2]), dim=1))[0][:, -1]
    assert torch.allclose(logits, expected, atol=1e-4)


def test_an_emptied_cache_has_forgotten_the_text_before(long_model):
    cache, idx = generate.KVCache(12), torch.randint(64, (2, 2, 6))
    generate.feed(long_model, idx[0], cache)
    cache.begin(0)
    assert torch.allclose(generate.feed(long_model, idx[1], cache), long_model(idx[1])[0][:, -1], atol=1e-5)


def test_a_step_with_the_cache_computes_one_token(long_model, monkeypatch):
    lengths, forward = [], long_model.forward

    def recorded(idx, **options):
        lengths.append(idx.size(1))
        return forward(idx, **options)
    monkeypatch.setattr(long_model, 'forward', recorded)
    long_model.generate(torch.randint(64, (2, 9)), 5)
    assert lengths == [9, 1, 1, 1, 1]


def test_prompts_of_different_lengths_continue_as_each_would_alone(long_model):
    prompts = [torch.randint(64, (1, length)) for length in (1, 4, 9, 12)]
    padding = torch.tensor([12 - prompt.size(1) for prompt in prompts])
    together = torch.cat([torch.cat((torch.zeros(1, 12 - p.size(1), dtype=torch.long), p), dim=1) for p in prompts])
    written = long_model.generate(together, 36, temperature=0, padding=padding)
    for row, prompt, pad in zip(written, prompts, padding):
        assert torch.equal(row[None, pad:], long_model.generate(prompt, 36, temperature=0))


def test_padding_is_not_penalized(long_model):
    idx = torch.randint(1, 64, (1, 6))
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), idx), dim=1)
    options = dict(temperature=0, repetition_penalty=2.0)
    alone = long_model.generate(idx, 20, **options)
    assert torch.equal(long_model.generate(padded, 20, padding=torch.tensor([4]), **options)[:, 4:], alone)
    logits = torch.randn(1, 64)
    assert torch.equal(generate.penalize_repetition(logits, torch.tensor([[64, 70]]), 2.0), logits)


def test_past_the_context_learned_positions_start_over_with_its_last_half(model):
    """The context is the whole text until it is full, at 16 tokens; then the last 8 are kept and it grows again."""
    padding = torch.tensor([0, 2])
    written = model.generate(torch.randint(64, (2, 3)), 60, temperature=0, padding=padding)
    begin = 0
    for step in range(3, 63):
        if step - begin > 16:
            begin = step - 8
        for row, pad in zip(written, padding.tolist()):
            assert row[step] == model(row[None, max(begin, pad):step])[0][0, -1].argmax()


def test_past_the_context_rotary_positions_slide(monkeypatch):
    """Each token sees the block_size tokens up to itself, as in one pass with a banded mask."""
    model = make_model(modern=True)
    written = model.generate(torch.randint(64, (2, 3)), 60, temperature=0)

    def banded(q, k, v, scale, dropout, mask=None):
        distance = torch.arange(q.size(2))[:, None] - torch.arange(k.size(2))
        band = (distance >= 0) & (distance < 16)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, band, scale=scale)
    monkeypatch.setattr('model.attend', banded)
    model.config.block_size = 63
    logits = model(written, written)[0]
    assert torch.equal(written[:, 3:], logits[:, 2:-1].argmax(dim=-1))


def test_padding_of_rotary_positions_slides_out(monkeypatch):
    model = make_model(modern=True)
    prompts = torch.randint(64, (2, 6))
    padding = torch.tensor([0, 4])
    written = model.generate(prompts, 60, temperature=0, padding=padding)
    assert torch.equal(written[:1], model.generate(prompts[:1], 60, temperature=0))
    assert torch.equal(written[1:, 4:22], model.generate(prompts[1:, 4:], 16, temperature=0))


def test_a_prompt_longer_than_the_context(long_model):
    idx = torch.randint(64, (2, 100))
    first = long_model.generate(idx, 1, temperature=0)
    assert torch.equal(first, long_model.generate(idx, 1, temperature=0, use_cache=False))
    assert long_model.generate(idx, 60, temperature=0).shape == (2, 160)


def test_past_the_context_without_the_cache_the_last_block_size_ids_decide(model):
    written = model.generate(torch.randint(64, (2, 3)), 40, temperature=0, use_cache=False)
    for step in range(16, 43):
        expected = model(written[:, step - 16:step])[0][:, -1].argmax(dim=-1)
        assert torch.equal(written[:, step], expected)


def test_beam_search_finds_what_hugging_face_finds(tmp_path):
    """Texts and scores: with and without end-of-text, length and repetition penalties, and the cache."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=40, n_positions=64)
    reference = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.25 * torch.randn_like(p))
    reference.save_pretrained(tmp_path)
    model, idx = GPT.from_pretrained(str(tmp_path)).eval(), torch.randint(40, (1, 5))
    for beams, length_penalty, penalty, end in ((3, 1.0, None, 7), (4, 0.0, None, 11), (2, 2.0, 1.3, 9),
                                                (5, 1.0, 1.2, None), (4, -1.0, None, 7), (6, 3.0, None, 3)):
        expected = reference.generate(
            idx, num_beams=beams, num_return_sequences=beams, do_sample=False, length_penalty=length_penalty,
            max_new_tokens=12, eos_token_id=end, pad_token_id=0, repetition_penalty=penalty, early_stopping=False,
            attention_mask=torch.ones_like(idx), return_dict_in_generate=True, output_scores=True)
        theirs = [ids[5:].tolist() for ids in expected.sequences]
        theirs = [ids[:ids.index(end) + 1] if end in ids else ids for ids in theirs]
        for cache in (None, generate.KVCache(17)):
            ours = generate.beam_search(model, idx, 12, beams, length_penalty, end, repetition_penalty=penalty,
                                        cache=cache)
            assert [ids for _, ids in ours] == theirs
            scores = torch.tensor([score for score, _ in ours])
            assert torch.allclose(scores, expected.sequences_scores, atol=1e-4)


def test_an_interrupted_beam_search_returns_what_it_has_found(long_model):
    def progress(steps):
        yield from [1, 2, 3]
        raise KeyboardInterrupt
    idx = torch.randint(64, (1, 5))
    stopped = generate.beam_search(long_model, idx, 40, 3, cache=generate.KVCache(48), progress=progress)
    assert [ids for _, ids in stopped] == [ids for _, ids in generate.beam_search(long_model, idx, 3, 3)]


def test_more_beams_than_tokens_in_the_vocabulary():
    model = make_model(vocab_size=3)
    found = generate.beam_search(model, torch.zeros(1, 1, dtype=torch.long), 2, 20)
    assert len(found) == 9 and len({tuple(ids) for _, ids in found}) == 9
    assert len(generate.beam_search(model, torch.zeros(1, 1, dtype=torch.long), 1, 20)) == 3


@pytest.mark.parametrize('options', [dict(temperature=1e-40), dict(temperature=1e300 * 1e100), dict(top_k=10 ** 30),
                                     dict(top_p=0.0), dict(min_p=1.0)])
def test_extreme_options_write_text(model, options):
    assert model.generate(torch.zeros(2, 1, dtype=torch.long), 9, **options).max() < 64


@pytest.mark.parametrize('dtype, remedy', [(torch.float16, '--dtype=float32'), (torch.float32, 'earlier checkpoint')])
@pytest.mark.parametrize('use_cache', [True, False])
def test_logits_that_are_not_finite_end_the_text_with_what_to_do(dtype, remedy, use_cache):
    model, prompt = make_model().to(dtype), torch.tensor([[3], [7]])
    with torch.no_grad():  # finite, but what is computed with it is not
        model.lm_head.weight[7] = torch.finfo(dtype).max * model.lm_head.weight[7].sign()
    for options in (dict(temperature=0), dict(), dict(top_k=5, top_p=0.9, repetition_penalty=1.2)):
        with pytest.raises(ValueError, match=remedy):
            next(generate.stream(model, prompt, 9, use_cache, **options))
    with pytest.raises(ValueError, match=remedy):
        generate.beam_search(model, prompt[1:], 9, 3, cache=generate.KVCache(10) if use_cache else None)


@pytest.mark.parametrize('temperature', [0, 1.0])
def test_logits_that_become_infinite_later_end_the_text_there(model, monkeypatch, temperature):
    forward, calls = model.forward, []

    def third_overflows(*args, **options):
        calls.append(1)
        logits, loss = forward(*args, **options)
        return (logits * float('nan') if len(calls) == 3 else logits), loss
    monkeypatch.setattr(model, 'forward', third_overflows)
    tokens = generate.stream(model, torch.zeros(2, 1, dtype=torch.long), 9, temperature=temperature)
    assert [next(tokens)[0].shape, next(tokens)[0].shape] == [(2, 1), (2, 1)]
    with pytest.raises(ValueError, match='not finite'):
        next(tokens)
    calls.clear()
    with pytest.raises(ValueError, match='not finite'):
        generate.beam_search(model, torch.zeros(1, 1, dtype=torch.long), 9, 3)


def test_what_multinomial_refuses_is_told_like_that(model, monkeypatch):
    """On a GPU, where not every step is looked at."""
    monkeypatch.setattr(model, 'forward', lambda idx, **options: (torch.full((1, 1, 64), float('nan')), None))
    with pytest.raises(ValueError, match='not finite'):
        generate.next_token(model, torch.zeros(1, 1, dtype=torch.long), check=False)


def test_steps_on_an_accelerator_are_looked_at_once_in_a_while_and_nothing_else_waits_for_it(long_model, monkeypatch):
    """The device here is 'meta', where waiting for a value is an error."""
    looked, shown, model = [], [], copy.deepcopy(long_model).to('meta')
    monkeypatch.setattr(generate, 'check_finite', lambda logits, dtype: looked.append(len(shown)))
    monkeypatch.setattr(generate, 'CHECK_INTERVAL', 4)
    for token, _ in generate.stream(model, torch.zeros(2, 5, dtype=torch.long, device='meta'), 9, temperature=0):
        shown.append(token)
    assert looked == [0, 4, 8]


def test_the_log_probabilities_are_the_models_own(long_model):
    """Before temperature, filters and penalties."""
    idx = torch.randint(64, (3, 5))
    steps = list(generate.stream(long_model, idx, 10, logprobs=True, temperature=0.3, top_k=5, repetition_penalty=2.0))
    written = torch.cat([idx, *(token for token, _ in steps)], dim=1)
    expected = long_model(written, written)[0].log_softmax(dim=-1)[:, 4:-1].gather(2, written[:, 5:, None])[..., 0]
    assert torch.allclose(torch.stack([scores for _, scores in steps], dim=1), expected, atol=1e-5)
    assert next(generate.stream(long_model, idx, 1))[1] is None


def test_a_cache_goes_on_with_more_text(long_model):
    """As in a chat: what the cache has seen is not computed again, and the tokens are the same."""
    cache, idx = generate.KVCache(48), torch.randint(64, (2, 5))
    for _ in range(3):
        expected = long_model.generate(idx, 6, temperature=0)
        assert torch.equal(long_model.generate(idx, 6, temperature=0, cache=cache), expected)
        idx = torch.cat((expected, torch.randint(64, (2, 3))), dim=1)


@pytest.mark.parametrize('padding', [None, torch.tensor([0, 3])])
def test_a_static_cache_changes_no_token(long_model, padding):
    """All steps have the same shapes, also past the context."""
    idx, shapes = torch.randint(64, (2, 5)), set()
    cache = generate.KVCache(48, padding, static=True)

    def step(ids, cache):
        shapes.add((tuple(ids.shape), ids.stride(), cache.used, tuple(cache.mask.shape), tuple(cache.positions.shape)))
        return long_model(ids, cache=cache)
    written = long_model.generate(idx, 100, temperature=0, cache=cache, step=step)
    assert torch.equal(written, long_model.generate(idx, 100, temperature=0, padding=padding))
    assert len(shapes) == 1
