"""
Muon for the matrices of the blocks and AdamW for everything else, in one optimizer. It knows parameters and gradients,
no model.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix's gradient and
steps along the nearest matrix whose singular values are all about 1: rare directions of the gradient then count as much
as frequent ones. Weight decay as in Liu et al. 2025, "Muon is Scalable for LLM Training".
"""
import torch

# Jordan's quintic polynomial, which brings singular values to about 1 (0.7 to 1.2) in five steps
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5

LARGEST_BATCH = 2**26  # elements orthogonalized at once; takes about 1 GB beside the state


def orthogonalize(matrices, dtype):
    """
    Newton-Schulz: (N, m, n) matrices with their singular values brought to about 1 and their singular vectors kept. In
    `dtype`, bfloat16 where the device has it, else float32; in float16 it is not stable.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x  # transpose so that the Gram matrix is the small one
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # or large singular values would diverge
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b gram + c gram^2) x
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """
    Param groups with `pieces` above 0 hold matrices for Muon. Each is cut into that many equal pieces along dim 0 that
    are orthogonalized separately (3 for the query, key and value of a fused projection). Other groups are AdamW's. Muon
    reads lr, momentum (Nesterov) and weight_decay of its groups, and scales the step of a piece that has more rows than
    columns by sqrt(rows / columns). `dtype` is that of orthogonalize().

    Like fused AdamW, on which it is built, it changes nothing where self.found_inf is 1, without a host sync. FSDP's
    split parameters are gathered for orthogonalize() only; their state stays split.
    """

    def __init__(self, groups, dtype=torch.float32, **options):
        super().__init__([{'pieces': 0, 'momentum': 0.95, **group} for group in groups], **options)
        self.dtype = dtype

    def __setstate__(self, state):
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's needs a step count for each parameter

    @torch.no_grad()
    def step(self):
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if group['pieces'] == 0]  # hide Muon's from AdamW
            super().step()
        finally:
            self.param_groups = groups
        self.step_matrices([group for group in groups if group['pieces'] > 0])

    def step_matrices(self, groups):
        found_inf = getattr(self, 'found_inf', None)  # set by GradScaler or by the training loop, as for fused AdamW
        by_shape = {}  # pieces of one shape are orthogonalized together
        for group in groups:
            for p in (p for p in group['params'] if p.grad is not None):
                batches = by_shape.setdefault((p.size(0) // group['pieces'], p.size(1)), [[]])
                if sum(other.numel() for other, _ in batches[-1]) > LARGEST_BATCH:
                    batches.append([])
                batches[-1].append((p, group))
        for (rows, columns), batches in by_shape.items():
            for batch in batches:
                updates = [self.accumulate(p, group['momentum'], found_inf) for p, group in batch]
                steps = torch.cat([update.view(-1, rows, columns) for update in updates])
                steps = orthogonalize(steps, self.dtype) * max(1, rows / columns)**0.5
                if found_inf is not None:
                    steps = steps * (found_inf == 0)
                for (p, group), step in zip(batch, steps.split([update.size(0) // rows for update in updates])):
                    decay = group['lr'] * group['weight_decay']
                    local(p).mul_(1 - decay if found_inf is None else 1 - decay * (found_inf == 0))
                    local(p).add_(own_rows(step.reshape(p.shape), p), alpha=-group['lr'])

    def accumulate(self, p, momentum, found_inf):
        """Add p's gradient to its momentum; returns the whole matrix to orthogonalize (rows, columns)."""
        state = self.state[p]
        if 'momentum_buffer' not in state:
            state['momentum_buffer'] = torch.zeros_like(p)
        buffer = state['momentum_buffer']
        if found_inf is not None:  # a gradient that equals the buffer leaves the buffer as it is
            local(p.grad).copy_(torch.where(found_inf > 0, local(buffer), local(p.grad)))
        buffer.lerp_(p.grad, 1 - momentum)
        update = p.grad.lerp(buffer, momentum)  # Nesterov
        return update.full_tensor() if hasattr(update, 'full_tensor') else update


def local(tensor):
    """The part of a tensor that this rank has: all of it, unless FSDP split it."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def own_rows(whole, p):
    """The rows of a `whole` matrix that FSDP gave this rank of `p`; without FSDP all."""
    if not hasattr(p, 'device_mesh'):
        return whole
    from torch.distributed.tensor import DTensor, Replicate
    return DTensor.from_local(whole, p.device_mesh, [Replicate()]).redistribute(placements=p.placements).to_local()
