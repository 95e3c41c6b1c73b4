"""torch.compile where it works, and eager execution with a printed reason where it does not."""
import time

import torch
from torch.nn.parallel import DistributedDataParallel

from common.distributed import print0


def compile_or_eager(model, ctx, trial, mode=None):
    """
    torch.compile(model); or the model itself and a printed line where that fails (no C++ compiler, no Triton, an
    unsupported GPU). `trial` is a function that runs the compiled model as it will be used; it is called within `ctx`.
    In a DistributedDataParallel the inner model is compiled, and first called through DDP: PyTorch then cuts the graph
    at the gradient buckets, so that gradients travel while the backward pass goes on.
    """
    print0('compile: begun; it may take a minute or two')
    start, (graphs, breaks) = time.perf_counter(), counts()
    parallel = isinstance(model, DistributedDataParallel)
    inner = model.module if parallel else model
    # not dynamic: evaluation may have batches of another size, and one graph for all sizes would be slow
    compiled = used = torch.compile(inner, mode=mode, dynamic=False)
    if parallel:
        used, model.module = model, compiled
        model.require_backward_grad_sync = False  # if one rank fails in the trial, the others must not wait for it
    try:
        with ctx:
            trial(used)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        error = getattr(error, 'inner_exception', error)  # the reason for a BackendCompilerFailed
        reason = str(error).strip().split('\n')[0]
        print0(f'compile: not possible here, running eager instead ({type(error).__name__}: {reason})')
        if parallel:
            model.module = inner
        return model
    finally:
        model.zero_grad(set_to_none=not parallel)  # DDP's gradients must stay in its buckets
    graphs, breaks = (now - before for now, before in zip(counts(), (graphs, breaks)))
    seconds = f'{time.perf_counter() - start:.1f} s'
    if graphs == 0:
        print0(f'compile: no graph was made in {seconds}, so this runs in eager or was compiled before; '
               'TORCH_LOGS=graph_breaks tells more')
    else:
        print0(f'compile: done in {seconds}, graphs: {graphs}' + f', graph breaks: {breaks}' * (breaks > 0))
    return used


def counts():
    """(graphs, graph breaks) of torch.compile in this process so far."""
    from torch._dynamo.utils import counters  # takes a second to import
    return counters['stats']['unique_graphs'], sum(counters['graph_break'].values())


def training_trial(train_batch, eval_batch):
    """A trial for compile_or_eager: train on a batch (x, y), and evaluate one, which is another graph. None: do not."""
    def trial(model):
        if train_batch is not None:
            model(*train_batch)[1].backward()
            # now: after an evaluation FSDP's model has other parameters, not sharded
            model.zero_grad(set_to_none=not isinstance(model, DistributedDataParallel))
        if eval_batch is not None:
            inner = getattr(model, 'module', model)  # without DDP, as evaluate() calls it
            inner.eval()
            try:
                with torch.no_grad():
                    inner(*eval_batch)
            finally:
                inner.train()
    return trial
