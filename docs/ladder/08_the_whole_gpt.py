"""
8. The whole GPT: several blocks, a last norm, and one table for reading and writing, as in GPT-2.
With the same weights its logits equal those of model.py, which adds only what speed and other models need.

    python docs/ladder/08_the_whole_gpt.py [TEXT [STEPS]]

Expect a validation loss of 1.746.

To try: 1. One block, and four. 2. A table of its own for writing (no tied line, no assert). 3. 3,000 steps.
"""
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from model import GPT, GPTConfig

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


model = nn.Sequential(Embedding(), Block(), Block(), nn.LayerNorm(C), nn.Linear(C, V, bias=False))
model[-1].weight = model[0].token.weight  # tied
for table in (model[0].token, model[0].position):
    nn.init.normal_(table.weight, std=C ** -0.5)  # first loss log(V) + 0.4; GPT-2's 0.02: log(V), last 1.889
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
for step in range(steps):
    xy = train[torch.randint(len(train), (B,))]  # (B, T + 1)
    loss = F.cross_entropy(model(xy[:, :-1]).flatten(0, 1), xy[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

theirs = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=2, n_head=H, n_embd=C))
theirs.load_state_dict(dict(zip(theirs.state_dict(), model.state_dict().values())))  # which are in the same order
x, y = val[::T, :-1], val[::T, 1:]  # the whole of it, in pieces that follow one another
with torch.no_grad():
    logits = model(x)  # (places, T, V)
    assert torch.allclose(logits, theirs(x, y)[0], rtol=0, atol=1e-5)
print(f'the logits equal those of model.py; validation loss {F.cross_entropy(logits.flatten(0, 1), y.flatten()):.3f}')
print(''.join(chars[i] for i in theirs.generate(val[:1, :T], 300)[0, T:]))
