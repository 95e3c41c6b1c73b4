"""
3. Averaging the past: each place looks at all characters before it, and at its own.

A character is now a vector of C numbers (its embedding), and a place gets the mean of the vectors so far. Three ways to
compute it give the same: a loop; a product with a triangular matrix whose rows add up to 1; and a softmax of scores
that are 0 for the past and minus infinity for the future. The third is the one that attention needs.
The mean alone predicts worse than the last character did: it does not say what came last, or in which order.

    python docs/ladder/03_averaging_the_past.py [TEXT [STEPS]]

Expect a validation loss of 3.056.

To try (answers.md has the answers):
1. Let a place see only itself: weights = torch.eye(T) instead of the mean. Which file's loss comes out?
2. Let it see itself and the one before, half and half.
"""
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / 'data/pydoc_char/input.txt'
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
text = path.read_text(encoding='utf-8')[:500_000] if path.is_file() else ''
if len(text) < 330:  # the last tenth has to hold T + 1 characters
    sys.exit(f'{path} is missing or too short; python data/pydoc_char/prepare.py writes the usual text')
chars = sorted(set(text))
V, T, B, C = len(chars), 32, 32, 64  # characters, context, sequences in a batch, width
ids = torch.tensor([chars.index(char) for char in text])
train, val = (part.unfold(0, T + 1, 1) for part in ids.tensor_split([len(ids) * 9 // 10]))  # (places, T + 1)
torch.manual_seed(0)


def weights_of(T):
    scores = torch.full((T, T), float('-inf')).triu(1)  # 0 for the past, -inf for the future
    return scores.softmax(dim=-1)  # (T, T), each row adds up to 1


class Average(nn.Module):
    def forward(self, x):
        return weights_of(x.size(1)) @ x  # (T, T) @ (B, T, C) -> (B, T, C)


x = torch.randn(B, T, C)
by_loop = torch.stack([x[:, :t + 1].mean(dim=1) for t in range(T)], dim=1)  # (B, T, C)
lower = torch.ones(T, T).tril()
by_matrix = lower / lower.sum(dim=1, keepdim=True) @ x  # (B, T, C)
assert torch.allclose(by_loop, by_matrix, atol=1e-6) and torch.allclose(by_loop, Average()(x), atol=1e-6)
print('loop, matrix and softmax give the same means; the first weights:', weights_of(3).tolist(), sep='\n')

model = nn.Sequential(nn.Embedding(V, C), Average(), nn.Linear(C, V, bias=False))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
for step in range(steps):
    xy = train[torch.randint(len(train), (B,))]  # (B, T + 1)
    loss = F.cross_entropy(model(xy[:, :-1]).flatten(0, 1), xy[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    xy = val[::T]  # the whole of it, in pieces that follow one another
    print(f'validation loss {F.cross_entropy(model(xy[:, :-1]).flatten(0, 1), xy[:, 1:].flatten()):.3f}')
    x = val[:1, :T]  # (1, T), which the text goes on from
    for _ in range(300):
        probabilities = model(x[:, -T:])[:, -1].softmax(dim=-1)  # (1, V), after the last character
        x = torch.cat((x, torch.multinomial(probabilities, 1)), dim=1)
    print(''.join(chars[i] for i in x[0, T:]))
