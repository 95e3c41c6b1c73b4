"""
Sampling: from logits to one token. What temperature, top-k and top-p change, counted in 10,000 draws.

The logits are those of seven words after "The cat sat on the". Temperature divides them before the softmax: below 1 the
likely becomes likelier, above 1 all become more alike. Top-k leaves the k likeliest to draw from. Top-p leaves as many
of the likeliest as together reach the probability p: few where the model is sure, many where it is not.

    python docs/ladder/sampling.py [DRAWS]

Expect "mat" 5428 times in 10,000 draws at temperature 1, 8226 times at 0.5, and 3423 times at 2.

To try (answers.md has the answers):
1. Temperature 0.01, and 100. What do they come to?
2. top_p=0.9 with logits that are all 0, and with a single 10 among them. How many words are left?
3. Temperature first and then top-p, or the other way round: is it the same? And with top-k?
"""
import math
import sys
from collections import Counter

import torch

LOGITS = {'mat': 4.0, 'sofa': 3.0, 'floor': 2.5, 'roof': 2.0, 'table': 1.5, 'moon': -0.5, 'of': -2.0}
draws = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000


def with_temperature(logits, temperature):
    return logits / temperature  # (V,)


def with_top_k(logits, k):
    kept = logits.topk(k).indices  # (k,), also where several are equally likely
    out = torch.full_like(logits, -math.inf)
    out[kept] = logits[kept]
    return out  # (V,)


def with_top_p(logits, p):
    probabilities, order = logits.softmax(dim=-1).sort(descending=True)  # (V,) each
    before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier ones have together
    out = logits.clone()
    out[order[before >= p]] = -math.inf
    return out  # (V,)


def show(name, logits):
    torch.manual_seed(0)
    probabilities = logits.softmax(dim=-1)
    counts = Counter(torch.multinomial(probabilities, draws, replacement=True).tolist())
    cells = [f'{counts[i]:6} ({p:4.0%})' for i, p in enumerate(probabilities.tolist())]
    print(f'{name:20}' + ''.join(f'{cell:>15}' for cell in cells))
    entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum()
    return f'{name}: as uncertain as between {entropy.exp():.1f} equally likely words'


logits = torch.tensor(list(LOGITS.values()))
print(' ' * 20 + ''.join(f'{word:>15}' for word in LOGITS))
said = [show('as they are', logits)]
for temperature in (0.5, 2.0):
    said.append(show(f'temperature {temperature}', with_temperature(logits, temperature)))
said.append(show('top_k 3', with_top_k(logits, 3)))
for p in (0.5, 0.9):
    said.append(show(f'top_p {p}', with_top_p(logits, p)))
said.append(show('2.0, then top_p 0.9', with_top_p(with_temperature(logits, 2.0), 0.9)))
said.append(show('top_p 0.9, then 2.0', with_temperature(with_top_p(logits, 0.9), 2.0)))
print('\n' + '\n'.join(said))
