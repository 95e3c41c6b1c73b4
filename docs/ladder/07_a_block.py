"""
7. A block: listen, then think, and keep what was there.

Attention brings numbers together; the MLP after it lets each place make something of them: four times as wide, a bend
(GELU), and back. Both *add* to x instead of replacing it, so that nothing is lost on the way and gradients find their
way back: the residual stream. A norm before each keeps the size of what comes in steady.

    python docs/ladder/07_a_block.py [TEXT [STEPS]]

Expect a validation loss of 1.919.

To try (answers.md has the answers):
1. Leave out "x +" in both lines; then leave out only the norms.
2. Leave out the GELU. What is an MLP without it?
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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.qkv, self.mix = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.norm_2, self.mlp = nn.LayerNorm(C), nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def attention(self, x):
        q, k, v = (part.unflatten(2, (H, C // H)).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        future = torch.full((x.size(1), x.size(1)), float('-inf')).triu(1)  # (T, T)
        scores = q @ k.mT * (C // H) ** -0.5 + future  # q, k, v (B, H, T, C / H) -> (B, H, T, T)
        heads = scores.softmax(dim=-1) @ v  # (B, H, T, C / H)
        return self.mix(heads.transpose(1, 2).flatten(2))  # side by side: (B, T, C)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))  # (B, T, C)
        return x + self.mlp(self.norm_2(x))  # (B, T, C)


model = nn.Sequential(Embedding(), Block(), nn.Linear(C, V, bias=False))
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
