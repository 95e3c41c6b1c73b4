"""
5. Masked and scaled: what the mask and the scale are for.

Without the mask a place sees the character that it is to predict. The loss is absurdly good, and the text is nonsense:
when it writes there is no future to look at. A loss that is too good to be true is the sign of such a leak.
Queries and keys of C numbers of variance 1 have products of variance C. Such scores make the softmax choose one place
and forget the others, and a choice has no gradient. Divided by sqrt(C) the variance is 1, and it can learn.

    python docs/ladder/05_masked_and_scaled.py [TEXT [STEPS]]

Expect a validation loss of 2.526, after 0.097 without the mask.

To try (answers.md has the answers):
1. Scale by 1 / C instead of 1 / sqrt(C).
2. Begin with embeddings of std 0.3 instead of 1, without the scale. Why does the scale matter less?
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


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(V, C), nn.Embedding(T, C)

    def forward(self, x):
        return self.token(x) + self.position.weight[:x.size(1)]  # (B, T) -> (B, T, C)


class Head(nn.Module):
    def __init__(self, masked):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.masked = masked

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, C) each
        future = torch.full((x.size(1), x.size(1)), float('-inf') if self.masked else 0.0).triu(1)  # (T, T)
        scores = q @ k.mT * C ** -0.5 + future  # (B, T, T)
        return scores.softmax(dim=-1) @ v  # (B, T, C)


for size in (16, 64, 256):
    products = (torch.randn(10000, size) * torch.randn(10000, size)).sum(dim=1)  # (10000,)
    print(f'size {size}: variance of the products {products.var():.0f}, scaled {(products * size ** -0.5).var():.2f}')

for masked in (False, True):
    model = nn.Sequential(Embedding(), Head(masked), nn.Linear(C, V, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    for step in range(steps):
        xy = train[torch.randint(len(train), (B,))]  # (B, T + 1)
        loss = F.cross_entropy(model(xy[:, :-1]).flatten(0, 1), xy[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        xy = val[::T]  # the whole of it, in pieces that follow one another
        loss = F.cross_entropy(model(xy[:, :-1]).flatten(0, 1), xy[:, 1:].flatten())
        print(f'masked: {masked}, validation loss {loss:.3f}')
        x = val[:1, :T]  # (1, T), which the text goes on from
        for _ in range(300):
            probabilities = model(x[:, -T:])[:, -1].softmax(dim=-1)  # (1, V), after the last character
            x = torch.cat((x, torch.multinomial(probabilities, 1)), dim=1)
        print(''.join(chars[i] for i in x[0, T:]))
