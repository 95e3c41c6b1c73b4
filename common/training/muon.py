"""
Muon for the matrices of the blocks and AdamW for everything else, in one optimizer. It knows parameters by their names,
and no model.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix's gradient and
steps along the nearest matrix whose singular values are all about 1: rare directions of the gradient then count as much
as frequent ones. Weight decay as in Liu et al. 2025, "Muon is Scalable for LLM Training".
"""
import torch
import torch.distributed as dist

# Polar Express (Amsel et al. 2025, https://arxiv.org/abs/2505.16932): each step applies the odd polynomial
# a x + b x^3 + c x^5 to the singular values. The first one brings those between 0.001 and 1 as near to 1 as one can,
# each later one those that the steps before leave. All but the last are made for values up to 1.01 times as large, as
# rounding may give: values much beyond that would diverge. Five steps end between 0.85 and 1.13. Three, which end
# between 0.13 and 1.87, do for small matrices, where Muon is a large part of an iteration (docs/recipe.md)
COEFFICIENTS = ((8.2052, -22.9019, 16.4607), (4.0664, -2.8612, 0.5184), (3.9096, -2.8234, 0.5250),
                (3.2856, -2.4153, 0.4853), (2.3007, -1.6689, 0.4188))
SMALL = 256  # rows, at most

# elements orthogonalized at once; takes about 1 GB beside the state. On a CPU a sixteenth of it: there are no launches
# to save, and memory that is used again is faster than new memory
LARGEST_BATCH = 2**26


def orthogonalize(matrices, dtype):
    """
    Float32 matrices (N, m, n) with their singular values brought to about 1 and their singular vectors kept, in
    `dtype`; zeros stay zeros. It is fastest with m <= n.

    They are normalized before they are cast: no gradient is then too small or too large for float16, which has three
    bits more than bfloat16 and is the more exact of the two (as in Step-3.5-Flash, https://arxiv.org/abs/2602.10604).
    """
    n_matrices, m, n = matrices.shape
    steps = COEFFICIENTS[:3] if m <= SMALL else COEFFICIENTS
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    x = torch.div(matrices, norms.clamp(min=1e-15)).to(dtype)  # singular values much above 1 would diverge
    # of a wide matrix only the small x x^T is iterated, the product of the polynomials is then applied once
    # (Dao-AILab's Gram Newton-Schulz); in 16 bits x x^T would lose the small singular values
    return iterate_gram(x, steps) if n >= 2 * m and dtype == torch.float32 else iterate(x, steps)


def iterate(x, steps):
    """Multiply x (N, m, n) with the polynomial a + b x x^T + c (x x^T)^2 of each of the steps (a, b, c)."""
    for coefficients in steps:
        x = torch.bmm(polynomial(torch.bmm(x, x.mT), *coefficients), x)
    return x


def iterate_gram(x, steps):
    """iterate(), but for x (N, m, n) with n much larger than m."""
    gram = torch.bmm(x, x.mT)
    factor = p = polynomial(gram, *steps[0])
    for coefficients in steps[1:]:
        gram = torch.bmm(torch.bmm(p, gram), p)  # that of factor @ x
        p = polynomial(gram, *coefficients)
        factor = torch.bmm(p, factor)
    return torch.bmm(factor, x)


def polynomial(gram, a, b, c):
    """a + b gram + c gram^2 of symmetric matrices (N, m, m)."""
    p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    p.diagonal(dim1=1, dim2=2).add_(p.new_full((p.size(1),), a))  # a number would be rounded to 16 bits first
    return p


def orthogonalize_together(matrices, dtype):
    """
    orthogonalize() for a list of N matrices (m, n) that all ranks have: each rank takes an equal share, and all get all
    results, (N, m, n) in `dtype`. A collective: all ranks must call it.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    filled = matrices + [torch.zeros_like(matrices[0])] * (-len(matrices) % ranks)
    share = len(filled) // ranks
    mine = orthogonalize(torch.stack(filled[rank * share:(rank + 1) * share]), dtype)
    if ranks == 1:
        return mine
    gathered = mine.new_empty(len(filled), *mine.shape[1:])
    dist.all_gather_single(gathered, mine)
    return gathered[:len(matrices)]


def is_vector(name, p):
    """Whether a parameter of a GPT is one of its biases, its norms, or the smear, one vector for each token back."""
    return p.dim() < 2 or name == 'smear'


def param_groups(params, head, muon_lr, embed_lr, vector_lr, weight_decay):
    """
    The groups of MuonAdamW for `params`, {name: parameter} of a GPT: the matrices of its blocks for Muon, at muon_lr
    and with weight decay, and for AdamW the weight of the output layer `head`, the embeddings and the vectors. With
    embed_lr and vector_lr, unless these are None or 0, the last two have rates of their own.
    """
    kinds = {'c_attn': [], 'matrix': [], 'vector': [], 'embedding': [], 'head': []}
    for name, p in params.items():
        if p is head:  # before the embedding, which may be the same
            kind = 'head'
        elif is_vector(name, p):
            kind = 'vector'
        elif name.endswith(('wte.weight', 'wpe.weight')):
            kind = 'embedding'
        else:
            kind = 'c_attn' if 'c_attn' in name else 'matrix'
        kinds[kind].append(p)
    muon = {'lr': muon_lr, 'weight_decay': weight_decay}
    options = {'c_attn': {'pieces': 3, **muon}, 'matrix': {'pieces': 1, **muon}}
    options |= {kind: {'lr': lr} for kind, lr in (('embedding', embed_lr), ('vector', vector_lr)) if lr}
    return [{'params': params, 'weight_decay': 0.0, **options.get(kind, {})} for kind, params in kinds.items()]


class MuonAdamW(torch.optim.AdamW):
    """
    Param groups with `pieces` above 0 hold matrices for Muon. Each is cut into that many equal pieces along dim 0 that
    are orthogonalized separately (3 for the query, key and value of a fused projection). Other groups are AdamW's. Muon
    reads lr, momentum (Nesterov) and weight_decay of its groups, and scales the step of a piece that has more rows than
    columns by sqrt(rows / columns). `dtype` is that of orthogonalize().

    Like fused AdamW, on which it is built, it changes nothing where self.found_inf is 1, without a host sync. step() is
    a collective. FSDP's split parameters are gathered for orthogonalize() only; their state stays split.
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
        skip = None if found_inf is None else found_inf > 0
        by_shape = {}  # pieces of one shape are orthogonalized together, and those of the transposed shape
        for group in groups:
            for p in (p for p in group['params'] if p.grad is not None):
                m, n = sorted((p.size(0) // group['pieces'], p.size(1)))
                batches = by_shape.setdefault((m, n, group['lr'], group['momentum'], group['weight_decay']), [[]])
                largest = LARGEST_BATCH if p.device.type != 'cpu' else LARGEST_BATCH // 16
                if sum(other.numel() for other in batches[-1]) > largest:
                    batches.append([])
                batches[-1].append(p)
        for options, batches in by_shape.items():
            for params in batches:
                self.step_batch(params, *options, skip)

    def step_batch(self, params, m, n, lr, momentum, weight_decay, skip):
        """
        Step parameters whose pieces are (m, n), m <= n, or transposed. It is written for few kernel launches: hundreds
        of small ones would take a GPU longer than the arithmetic.
        """
        tall, wide = [p for p in params if p.size(1) < n], [p for p in params if p.size(1) == n]
        updates = self.accumulate(tall + wide, momentum, skip)
        matrices = [matrix for update in updates[:len(tall)] for matrix in update.view(-1, n, m).mT.unbind()]
        n_tall = len(matrices)
        matrices += [matrix for update in updates[len(tall):] for matrix in update.view(-1, m, n).unbind()]
        steps = orthogonalize_together(matrices, self.dtype)  # (N, m, n)
        decay = lr * weight_decay
        if skip is not None:
            steps.mul_(~skip)
            decay = decay * ~skip
        if weight_decay > 0:
            torch._foreach_mul_([local(p) for p in params], 1 - decay)
        for params, steps in ((tall, steps[:n_tall].mT), (wide, steps[n_tall:])):
            if params:
                rows, columns = steps.shape[1:]
                steps = steps.contiguous().float().split([p.size(0) // rows for p in params])
                torch._foreach_add_([local(p) for p in params],
                                    [own_rows(step.view(p.shape), p) for p, step in zip(params, steps)],
                                    alpha=-lr * max(1, rows / columns)**0.5)

    def accumulate(self, params, momentum, skip):
        """Add gradients to their momenta; returns the whole matrices to orthogonalize, shaped like `params`."""
        for p in params:
            if 'momentum_buffer' not in self.state[p]:
                self.state[p]['momentum_buffer'] = torch.zeros_like(p)
        buffers = [local(self.state[p]['momentum_buffer']) for p in params]
        grads = torch.cat([local(p.grad).reshape(-1) for p in params])
        if skip is not None:
            grads.masked_fill_(skip, 0.0)  # they may be NaN, which stays NaN whatever it is multiplied by
        updates = [grad.view_as(buffer) for grad, buffer in zip(grads.split([b.numel() for b in buffers]), buffers)]
        torch._foreach_mul_(buffers, momentum if skip is None else torch.where(skip, 1.0, momentum))
        torch._foreach_add_(buffers, updates, alpha=1 - momentum)
        torch._foreach_lerp_(updates, buffers, momentum)  # Nesterov
        return [whole(update, p) for update, p in zip(updates, params)]


def local(tensor):
    """The part of a tensor that this rank has: all of it, unless FSDP split it."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def whole(rows, p):
    """The whole matrix of `rows`, those that FSDP gave this rank of `p`; without FSDP they are all. A collective."""
    if not hasattr(p, 'device_mesh'):
        return rows
    from torch.distributed.tensor import DTensor
    return DTensor.from_local(rows, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()


def own_rows(matrix, p):
    """The rows of a whole matrix that FSDP gave this rank of `p`; without FSDP all."""
    if not hasattr(p, 'device_mesh'):
        return matrix
    from torch.distributed.tensor import DTensor, Replicate
    return DTensor.from_local(matrix, p.device_mesh, [Replicate()]).redistribute(placements=p.placements).to_local()
