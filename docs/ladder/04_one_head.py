"""
4. One head of attention: each place chooses which places to listen to.

Each place makes three vectors of its own: a query (what am I looking for?), a key (what do I have?) and a value (what
do I tell?). The product of a query and a key is the score, where the file before had 0 for all; the rest is the same.
So that a query can ask for "the place before mine", each position has a vector too, added to the character's.

    python docs/ladder/04_one_head.py [TEXT [STEPS]]

Expect a validation loss of 2.826: better than the mean, worse than the table of pairs. The next file says why.

To try (answers.md has the answers):
1. Leave the positions out.
2. Use x itself instead of the value. What is lost?
3. Print softmax(scores)[0, 10]. To how many places does place 10 really listen?
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
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, C) each
        future = torch.full((x.size(1), x.size(1)), float('-inf')).triu(1)  # (T, T)
        scores = q @ k.mT + future  # (B, T, T): for each place, how much it wants to hear of each
        return scores.softmax(dim=-1) @ v  # (B, T, C)


model = nn.Sequential(Embedding(), Head(), nn.Linear(C, V, bias=False))
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
