"""
Optimizer and schedule: AdamW written out, on two parameters in a narrow valley, beside SGD and Adam.

The loss is 1,000 times as curved across the valley as along it, and each gradient has some noise, as that of a batch.
SGD has one rate for both: a constant one above 2 / 1000 throws it out of the valley, below that it creeps along it.
Adam divides each parameter's mean gradient by its usual size, so its steps are about as long as the rate says; AdamW
also lets weights shrink a little. A cosine lets the noise settle at the end. (Warmup, a tenth of the steps, is for
networks; here it gains nothing.) SGD only loses by the two, as they halve its rate on average: it is still on the way.

    python docs/ladder/optimizer_and_schedule.py

Expect a loss of 0.029 at the end of AdamW with warmup and cosine, and of 0.159 at a constant rate.

To try (answers.md has the answers):
1. Turn the valley by 30 degrees: ANGLE = math.radians(30). Who loses most, and why?
2. AdamW with weight_decay=0.5. Where does the loss end, and why not near 0?
3. AdamW without the two corrections by beta ** steps. How long is the first step?
"""
import math

import torch

ANGLE, STEPS, NOISE, SEEDS = 0.0, 400, 3.0, 20
torch.set_default_dtype(torch.float64)
turn = torch.tensor([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]])
curvature = turn @ torch.tensor([[1.0, 0.0], [0.0, 1000.0]]) @ turn.T  # (2, 2)
minimum = torch.tensor([2.0, 1.0])


def loss_of(p):
    away = p - minimum  # (SEEDS, 2)
    return (away @ curvature * away).sum(dim=1) / 2  # (SEEDS,)


class AdamW:  # Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101
    def __init__(self, params, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01):
        self.p, self.betas, self.eps, self.weight_decay = params[0], betas, eps, weight_decay
        self.mean, self.square, self.steps = torch.zeros_like(self.p), torch.zeros_like(self.p), 0
        self.param_groups = [{'lr': lr}]

    @torch.no_grad()
    def step(self):
        lr, grad, (beta1, beta2) = self.param_groups[0]['lr'], self.p.grad, self.betas
        self.steps += 1
        self.p *= 1 - lr * self.weight_decay
        self.mean = beta1 * self.mean + (1 - beta1) * grad  # over the last 10 steps or so
        self.square = beta2 * self.square + (1 - beta2) * grad ** 2  # over the last 20
        mean = self.mean / (1 - beta1 ** self.steps)  # both began at 0, and would be too small at first
        square = self.square / (1 - beta2 ** self.steps)
        self.p -= lr * mean / (square.sqrt() + self.eps)


def warmup_and_cosine(step, warmup=STEPS // 10):
    return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (STEPS - warmup)))


def descend(make, lr, level):
    """The parameters after STEPS steps, (SEEDS, 2): one descent for each seed, side by side."""
    torch.manual_seed(0)
    p = torch.tensor([[-1.0, 2.0]] * SEEDS, requires_grad=True)
    optimizer = make([p], lr)
    for step in range(STEPS):
        optimizer.param_groups[0]['lr'] = lr * level(step)
        p.grad, = torch.autograd.grad((loss_of(p) + NOISE * (torch.randn(SEEDS, 2) * p).sum(dim=1)).sum(), p)
        optimizer.step()
    return p.detach()


OPTIMIZERS = {'SGD': torch.optim.SGD, 'Adam': lambda p, lr: torch.optim.Adam(p, lr, (0.9, 0.95)), 'AdamW': AdamW,
              "PyTorch's AdamW": lambda p, lr: torch.optim.AdamW(p, lr, (0.9, 0.95))}
ends = {}
for name, lr in ('SGD', 0.0019), ('SGD', 0.0021), ('Adam', 0.1), ('AdamW', 0.1), ("PyTorch's AdamW", 0.1):
    ends[name] = torch.stack([descend(OPTIMIZERS[name], lr, level) for level in (lambda step: 1.0, warmup_and_cosine)])
    losses = [loss_of(end).mean().item() for end in ends[name]]
    print(f'{name:15}  rate {lr:<6}  constant: loss {losses[0]:<10.4g} warmup and cosine: loss {losses[1]:.4g}')
assert torch.allclose(ends['AdamW'], ends["PyTorch's AdamW"], rtol=0, atol=1e-8)
