"""
6. Several heads: a place can listen to several others, for several reasons at once.

One softmax has to share its attention. So the C numbers are cut into H slices, and each slice is a head of its own,
with its own scores: one may look at the character before, another for the beginning of the word. Their answers are put
side by side and mixed by one more matrix. The products cost what those of one large head cost; only the softmax has H
times as many scores. Query, key and value of all heads come from one matrix, which is the same as three.

    python docs/ladder/06_several_heads.py [TEXT [STEPS]]

Expect a validation loss of 2.233.

To try (answers.md has the answers):
1. 1, 2, 8 and 16 heads.
2. Leave out `mix`. Does it matter here?
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
V, T, B, C, H = len(chars), 32, 32, 64, 4  # characters, context, sequences in a batch, width, heads
ids = torch.tensor([chars.index(char) for char in text])
train, val = (part.unfold(0, T + 1, 1) for part in ids.tensor_split([len(ids) * 9 // 10]))  # (places, T + 1)
torch.manual_seed(0)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(V, C), nn.Embedding(T, C)

    def forward(self, x):
        return self.token(x) + self.position.weight[:x.size(1)]  # (B, T) -> (B, T, C)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.mix = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        q, k, v = (part.unflatten(2, (H, C // H)).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        future = torch.full((x.size(1), x.size(1)), float('-inf')).triu(1)  # (T, T)
        scores = q @ k.mT * (C // H) ** -0.5 + future  # q, k, v (B, H, T, C / H) -> (B, H, T, T)
        heads = scores.softmax(dim=-1) @ v  # (B, H, T, C / H)
        return self.mix(heads.transpose(1, 2).flatten(2))  # side by side: (B, T, C)


model = nn.Sequential(Embedding(), Attention(), nn.Linear(C, V, bias=False))
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
