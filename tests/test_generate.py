"""From logits to ids: greedy, filtered, seeded, and never an id that the tokenizer lacks."""
import pytest
import torch

from common import generate
from model import GPT, GPTConfig


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def test_temperature_zero_is_greedy(model):
    idx = torch.randint(64, (3, 4))
    written = model.generate(idx, 5, temperature=0)
    for step in range(4, 9):
        expected = model(written[:, :step])[0][:, -1].argmax(dim=-1)
        assert torch.equal(written[:, step], expected)


def test_top_k_keeps_what_hugging_face_keeps():
    transformers = pytest.importorskip('transformers')
    logits = torch.randn(5, 64)
    for k in (1, 3, 64, 1000):
        expected = transformers.TopKLogitsWarper(top_k=k)(None, logits)
        assert torch.equal(generate.filter_top_k(logits, k), expected)
    assert generate.filter_top_k(logits, 0) is logits and generate.filter_top_k(logits, None) is logits


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


def test_past_the_context_the_last_block_size_ids_decide(model):
    written = model.generate(torch.randint(64, (2, 3)), 40, temperature=0)
    for step in range(16, 43):
        expected = model(written[:, step - 16:step])[0][:, -1].argmax(dim=-1)
        assert torch.equal(written[:, step], expected)
