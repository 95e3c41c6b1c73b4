"""
2. A table that learns: the same model as a neural network.

The table is not counted but begins at 0, and is changed a little after each batch, against the gradient of the loss.
Its rows are logits: softmax makes probabilities of them. The gradient of the cross entropy with respect to the logits
is the probabilities, minus 1 at the right character. It ends where counting is at once, for there is nothing more to
know from one character. But any model has a gradient, and most cannot be counted.

    python docs/ladder/02_a_table_that_learns.py [TEXT [STEPS]]

Expect a validation loss of 2.598, where counting gives 2.595.

To try (answers.md has the answers):
1. A learning rate of 3e-3, or of 1, instead of 3e-2.
2. Begin with torch.randn(V, V) instead of zeros. What is the first loss, and why is it more than log(V)?
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
V, T, B = len(chars), 32, 32  # characters, context, sequences in a batch
ids = torch.tensor([chars.index(char) for char in text])
train, val = (part.unfold(0, T + 1, 1) for part in ids.tensor_split([len(ids) * 9 // 10]))  # (places, T + 1)
torch.manual_seed(0)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(V, V))

    def forward(self, x):
        return self.table[x]  # (B, T) -> (B, T, V)


logits, right = torch.randn(1, V, requires_grad=True), torch.tensor([3])
F.cross_entropy(logits, right).backward()
assert torch.allclose(logits.grad, logits.softmax(dim=-1) - F.one_hot(right, V), atol=1e-6)
print('the gradient of the cross entropy is softmax - one-hot')

model = Table()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2, weight_decay=0)
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
