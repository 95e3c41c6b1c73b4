"""
1. Counting pairs: the simplest language model. How often does each character follow each other one?

A table counts the pairs of neighbours in a text. A row of it, divided by its sum, is the probability of each character
that may come next. The loss is minus the logarithm of the probability that the right character got, on average: 0 is
certainty, log(V) is knowing nothing. It is measured on the last tenth of the text, which is not counted.

    python docs/ladder/01_counting_pairs.py [TEXT]

Expect a validation loss of 2.595, and letters that come in a likely order but are no words yet.

To try (answers.md has the answers):
1. Count triples: a table of V x V x V, from two characters to the next one. What is the loss?
2. Begin with 0 instead of 1 of each pair. Why is the validation loss infinite?
3. Which pair of letters is the most frequent? Which character is the easiest to predict from?
"""
import math
import sys
from pathlib import Path

import torch

path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / 'data/pydoc_char/input.txt'
text = path.read_text(encoding='utf-8')[:500_000] if path.is_file() else ''
if len(text) < 330:  # as in the other files
    sys.exit(f'{path} is missing or too short; python data/pydoc_char/prepare.py writes the usual text')
chars = sorted(set(text))
V = len(chars)
ids = torch.tensor([chars.index(char) for char in text])
train, val = ids.tensor_split([len(ids) * 9 // 10])
torch.manual_seed(0)

counts = torch.ones(V, V)  # 1 of each, so that no pair is impossible
for first, second in zip(train.tolist(), train[1:].tolist()):
    counts[first, second] += 1
probabilities = counts / counts.sum(dim=1, keepdim=True)  # (V, V), each row adds up to 1


def loss_of(ids):
    right = probabilities[ids[:-1], ids[1:]]  # (len(ids) - 1,), what each right character got
    return -right.log().mean().item()


def write(length):
    now, written = val[0].item(), ''
    for _ in range(length):
        now = torch.multinomial(probabilities[now], 1).item()
        written += chars[now]
    return written


common = torch.topk(counts.flatten(), 5).indices.tolist()
print('most frequent pairs:', ', '.join(repr(chars[pair // V] + chars[pair % V]) for pair in common))
print(f'knowing nothing: {math.log(V):.3f}, training loss {loss_of(train):.3f}')
print(f'validation loss {loss_of(val):.3f}')
print(write(300))
