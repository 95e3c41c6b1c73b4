"""
Train a GPT. One process, or as many as torchrun starts; a GPU, or a laptop.

python train.py config/quickstart.py                   # a first model from text that Python brings along
python train.py config/train_shakespeare_char.py       # after python data/shakespeare_char/prepare.py
python train.py config/train_shakespeare_char.py --init_from=auto        # resume it, or start if there is nothing yet
torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py   # GPT-2 124M on 8 GPUs, val loss about 2.85
torchrun --nnodes=2 --nproc_per_node=8 --node_rank=0 --master_addr=IP --master_port=1234 train.py  # node 1: node_rank=1
"""
import math
import os
import sys
import time

# -----------------------------------------------------------------------------
# output
out_dir = 'out'                    # folder, from the working directory; made if it is not there
eval_interval = 2000               # iterations between evaluations
eval_iters = 200                   # batches of each split in an evaluation; 0: the whole validation split
eval_only = False                  # evaluate once, write nothing, stop
log_interval = 1                   # iterations between lines
always_save_checkpoint = True      # save the full state at every evaluation; False: only when val loss improves
keep_interval = 0                  # iterations between weights that are kept for good (iter_010000.pt); 0: none
patience = 0                       # evaluations in a row without improvement that end the run; 0: it goes on
sample_prompts = ''                # texts to continue at every evaluation: 'ROMEO:|JULIET:', or FILE:PATH, one a line
# start
init_from = 'scratch'              # scratch, resume, auto; gpt2[-medium|-large|-xl] or any GPT-2 on Hugging Face or in
                                   # a folder; a checkpoint file or another run's out_dir (its weights, iteration 0)
seed = 1337                        # of the weights, the order of the data, dropout and the samples
# wandb, tensorboard
tensorboard_log = False            # into out_dir/tensorboard
wandb_log = False                  # with WANDB_API_KEY from the environment, or from a file .env
wandb_project = 'owt'
wandb_run_name = 'gpt2'
# data
dataset = 'openwebtext'            # a folder in data/, or a path to one: train.bin, val.bin, meta.json
auto_prepare = False               # run the dataset's prepare.py if it has no train.bin yet
allow_data_change = False          # resume on bins that are not the ones the run began with
gradient_accumulation_steps = 5 * 8  # micro-batches in an iteration, of all processes together
batch_size = 12                    # sequences in a micro-batch
block_size = 1024                  # tokens in a sequence
# model
n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0                      # 0 for pre-training, 0.1 and more for small data
bias = False                       # biases in LayerNorm and Linear, as GPT-2 has them
activation = 'gelu'                # gelu (exact) or gelu_tanh (what OpenAI's weights have)
modern = False                     # RoPE, QK-norm, ReLU^2 and more instead of GPT-2's choices: learns faster
gradient_checkpointing = False     # recompute activations in the backward pass: less memory, more time
# optimizer
optimizer = 'adamw'                # adamw, or muon: the blocks' matrices by Muon, all else by AdamW; learns faster
learning_rate = 6e-4               # AdamW's highest
muon_lr = 0.02                     # Muon's highest; it follows the schedule in proportion
max_iters = 600000                 # updates
weight_decay = 1e-1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0                    # the gradient's largest norm; 0.0: no clipping
spike_z = 0.0                      # skip updates whose loss is this many deviations above the last 100; 0: never
max_skips = 10                     # skipped updates in a row (spikes, losses that are not finite) that end the run
# learning rate schedule: linear warmup, then down to min_lr
decay_lr = True                    # False: learning_rate throughout
schedule = 'cosine'                # cosine, linear, or wsd: level, then linear (warmup, stable, decay)
cooldown = 0.3                     # the last part of lr_decay_iters that decays, with wsd
warmup_iters = 2000                # iterations
lr_decay_iters = 600000            # iterations until min_lr; about max_iters (Chinchilla)
min_lr = 6e-5                      # about learning_rate / 10 (Chinchilla)
# system
backend = 'auto'                   # between processes: nccl, gloo; auto: nccl on GPUs, gloo on CPUs
device = 'auto'                    # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'                     # float32, bfloat16, float16 (with loss scaling); auto: what the device is fast in
compile = True                     # torch.compile, where it works
fsdp = False                       # split weights, gradients and moments over the processes: for larger models
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

from dataclasses import asdict

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common import batches, bins, checkpoint as checkpoint_file, guard, hardware, runlog, settings, tokenizer
from common.hardware import print0
from model import GPT, GPTConfig, load_weights

rank, world_size = hardware.rank(), hardware.world_size()
data_dir = bins.find(root, dataset)


def load_model():
    """(model, checkpoint, path): the GPT to train; the state to resume from and its file, or None."""
    shape = {key: globals()[key] for key in
             ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'activation', 'modern')}
    if init_from in ('resume', 'auto'):
        try:
            checkpoint, path = checkpoint_file.load_newest(out_dir)
            model = GPT.from_checkpoint(checkpoint, dropout=dropout)
            tokenizer.check_same(meta, checkpoint.get('meta'), model.config.vocab_size)
            bins.check_unchanged(meta, checkpoint.get('meta'), allow_data_change)
            checkpoint_file.check_same_model(shape, asdict(model.config), checkpoint.get('config', {}), out_dir)
            return model, checkpoint, path
        except FileNotFoundError:
            if init_from == 'resume':
                raise
    if init_from in ('scratch', 'auto'):
        torch.manual_seed(seed)  # the same weights in every process
        return GPT(GPTConfig(**shape, vocab_size=tokenizer.padded_vocab_size(meta), dropout=dropout)), None, None
    model, source = load_weights(init_from, dropout=dropout)
    guard.check_modern(modern, model.config.modern, init_from)
    tokenizer.check_same(meta, source and source.get('meta'), model.config.vocab_size)
    model.crop_block_size(block_size)
    print0(f'{init_from} sets ' + ', '.join(f'{key}={getattr(model.config, key)}' for key in shape))
    return model, None, None


# a mistake of the user's shows here, before any work
try:
    settings.check(globals(), world_size)
    device = hardware.resolve_device(device)
    dtype = hardware.resolve_dtype(dtype, device)
    hardware.start_processes(backend, device)
    if auto_prepare and hardware.local_rank() == 0:
        bins.prepare(data_dir)
    hardware.barrier()
    meta = bins.read_meta(data_dir)
    data_size = bins.check(data_dir, meta, block_size)  # tokens in each split
    guard.explain_out_of_memory(batch_size, gradient_accumulation_steps, gradient_checkpointing)
    data = {split: batches.Reader(data_dir, split, meta, block_size + 1, device) for split in bins.SPLITS}
    prompts = tokenizer.encode_prompts(meta, sample_prompts)
    raw_model, checkpoint, path = load_model()
    iter_num, best_val_loss, evaluated_at, since_best, train_s, recent_losses = checkpoint_file.progress(checkpoint)
    if hardware.all_reduce([iter_num], device)[0] != iter_num * world_size:
        raise ValueError(f'the processes found different states in {out_dir}; it must be on a disk that all share')
    guard.check_model(raw_model.config, device, dtype, gradient_checkpointing)
    model_args = asdict(raw_model.config)
    device_type = device.partition(':')[0]
    raw_model.gradient_checkpointing = gradient_checkpointing
    if fsdp:
        hardware.shard(raw_model, raw_model.transformer.h, device)
    else:
        raw_model.to(device)
    muon = dict(muon_lr=muon_lr, muon_dtype=hardware.muon_dtype(device, dtype)) if optimizer == 'muon' else {}
    opt = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2), device_type, **muon)
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
    if checkpoint is not None:
        checkpoint_file.load_optimizer(opt, scaler, checkpoint)
        print0(f'resuming {path} at iteration {iter_num}' + checkpoint_file.changes(checkpoint, globals()))
    if rank == 0 and not eval_only:
        lock = checkpoint_file.open_out_dir(out_dir, path)  # held until the process ends
        guard.check_disk(out_dir, raw_model, optimizer, kept=max_iters // keep_interval if keep_interval else 0)
except (ValueError, OSError) as error:
    hardware.stop(error)

checkpoint = None  # frees its memory
tokens_per_iter = gradient_accumulation_steps * batch_size * block_size
config = {key: globals()[key] for key in config_keys}  # with device and dtype resolved
ctx = hardware.autocast(device, dtype, fsdp)
print0(f'data: {dataset}, {data_size["train"]:,} tokens to train on, {data_size["val"]:,} to validate')
print0(f'model: {raw_model.get_num_params() / 1e6:.2f}M parameters')
print0(f'run: {device}, {dtype}, processes: {world_size}, tokens per iteration will be: {tokens_per_iter:,}')


def train_starts(i):
    """Where the sequences of the global batch of iteration i start, (gradient_accumulation_steps, batch_size)."""
    starts = batches.random_numbers(seed, TRAIN, i, gradient_accumulation_steps * batch_size)
    return (starts % np.uint64(data_size['train'] - block_size)).astype(np.int64).reshape(-1, batch_size)


def get_batch(split, starts):
    """x, y (*shape, block_size) on the device: the ids from each of `starts` (an array) on, and those one further."""
    ids, counts = data[split].windows(starts)  # what a mask leaves out, or is past the end, is no target
    return ids[..., :-1], torch.where(counts, ids, -1)[..., 1:].contiguous()


def eval_batches(split):
    """The starts of every batch of an evaluation, the same each time; this process's share, (n, rows) int64."""
    size = data_size[split]
    if eval_iters > 0:  # spread evenly over the split, which estimates its loss better than random places do
        starts = np.linspace(0, size - block_size - 1, eval_iters * batch_size)
    else:  # windows side by side over the whole validation split, and over a piece of train as long
        starts = np.arange(0, min(size, data_size['val']) - 1, block_size)
    rows = max(1, 1024 // block_size) if gradient_checkpointing else batch_size  # short of memory: fewer logits at once
    # fill up with what counts for nothing: with fsdp all processes must run the same number of batches
    starts = np.append(starts, np.full(-len(starts) % (rows * world_size), size))
    return starts.astype(np.int64).reshape(-1, rows)[rank::world_size]


@torch.no_grad()
def estimate_loss():
    """[(loss, accuracy) of train, (loss, accuracy) of val], means over all scored tokens of all processes."""
    raw_model.eval()
    result = []
    for split in ('train', 'val'):
        sums = [torch.zeros(3, device=device)]
        for starts in tqdm(eval_batches(split), f'evaluating {split}', delay=5, leave=False, disable=rank > 0 or None):
            x, y = get_batch(split, starts)
            with ctx:
                logits, loss = compiled_model(x, y)
            counted = (y >= 0).sum()
            sums.append(torch.stack((loss * counted, (logits.argmax(dim=-1) == y).sum(), counted)))
        loss, correct, counted = hardware.all_reduce(torch.stack(sums).cpu().double().sum(dim=0), device)
        result.append(guard.mean_scores(split, loss, correct, counted))
    raw_model.train()
    return result


def sample_texts():
    """Each of sample_prompts continued by 200 tokens, with the same random numbers every time."""
    raw_model.eval()
    generator = torch.Generator(device).manual_seed(seed)
    with ctx:
        ids = [raw_model.generate(torch.tensor([prompt], device=device), 200, temperature=0.8, top_k=200,
                                  vocab_size=meta['vocab_size'], generator=generator)[0].tolist() for prompt in prompts]
    raw_model.train()
    return tokenizer.decode_all(meta, ids)


def get_lr(it):
    """AdamW's learning rate at iteration `it`: linear warmup, then the schedule down to min_lr. Muon's follows it."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    progress = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    level = {'cosine': 0.5 * (1.0 + math.cos(math.pi * progress)),
             'linear': 1.0 - progress,
             'wsd': min(1.0, (lr_decay_iters - it) / (cooldown * lr_decay_iters))}[schedule]
    return min_lr + level * (learning_rate - min_lr)


def full_state():
    """(weights, state): the dicts to save, without and with the optimizer. With fsdp all processes must call it."""
    weights = dict(model=checkpoint_file.gather(raw_model.state_dict()), model_args=model_args, config=config,
                   meta=meta, iter_num=iter_num, best_val_loss=best_val_loss, evaluated_at=evaluated_at,
                   since_best=since_best, train_s=train_s, recent_losses=list(step_guard.losses))
    return weights, dict(weights, optimizer=checkpoint_file.gather(opt.state_dict()), scaler=scaler.state_dict())


def settle_last_step():
    """Find out whether the last update was skipped, and record its batch; too many in a row end the run."""
    skipped = step_guard.settle()
    if skipped is not None and rank == 0:
        starts = train_starts(skipped).reshape(-1)
        log.skipped(skipped, step_guard.last_loss, starts.tolist(),
                    lambda: tokenizer.decode_all(meta, get_batch('train', starts)[0].tolist()))
    step_guard.give_up_after(max_skips, out_dir)


TRAIN, DROPOUT = 0, 1  # streams of random numbers; DROPOUT + rank is each process's own
# raw_model is saved and sampled from; compiled_model runs the same weights faster; model averages gradients as well
model = raw_model
stop_signal = guard.StopSignal(saves=not eval_only)
if world_size > 1 and not fsdp:
    model = DistributedDataParallel(raw_model, device_ids=[device] if device_type == 'cuda' else None,
                                    gradient_as_bucket_view=True)  # or gradients take their memory twice
if compile:
    batch = get_batch('train', np.arange(batch_size))
    model = hardware.compile_or_eager(model, ctx, lambda compiled: compiled(*batch)[1].backward())
compiled_model = model.module if isinstance(model, DistributedDataParallel) else model
if rank == 0 and not eval_only:
    log = runlog.RunLog({**config, **model_args, 'parameters': raw_model.get_num_params()}, iter_num, evaluated_at,
                        train_s, tokens_per_iter, raw_model.flops_per_token(), hardware.peak_flops(device, dtype))
step_guard = guard.StepGuard(spike_z, recent_losses)
t0 = time.perf_counter()
while True:
    # evaluate and save; the clock of training stands still meanwhile
    due = (iter_num % eval_interval == 0 or iter_num >= max_iters) and iter_num != evaluated_at
    evaluating = eval_only or (due and not stop_signal.agreed())
    improved, best_before = False, best_val_loss
    if evaluating:
        hardware.synchronize(device)
        train_s += time.perf_counter() - t0
        (train_loss, _), (val_loss, val_acc) = estimate_loss()
        print0(runlog.evaluation_line(iter_num, train_loss, val_loss, val_acc))
        if eval_only:
            break
        improved = val_loss < best_val_loss
        best_val_loss = val_loss if improved else best_val_loss
        evaluated_at, since_best = iter_num, 0 if improved else since_best + 1
        texts = sample_texts()
        if rank == 0:
            log.evaluation(iter_num, train_loss, val_loss, val_acc, train_s, texts)
        t0 = time.perf_counter()
    done = iter_num >= max_iters and iter_num == evaluated_at or 0 < patience <= since_best
    stopping = stop_signal.agreed()
    keeping = always_save_checkpoint or checkpoint_file.is_kept(iter_num, keep_interval)
    if stopping or (evaluating and (done or improved or keeping)):
        settle_last_step()
        train_s += time.perf_counter() - t0
        weights, state = full_state()
        written = checkpoint_file.save_run(out_dir, weights, state, improved, keep_interval) if rank == 0 else (0, 0)
        saved, best_saved = hardware.all_reduce(written, device)  # the first process's word
        weights = state = None  # frees their memory
        if not best_saved:
            best_val_loss = best_before
        if not saved and (done or stopping):
            sys.exit(1)
        t0 = time.perf_counter()
    if done or stopping:
        break

    # the step: the gradient of the global batch, of which each process takes every world_size-th micro-batch
    lr = get_lr(iter_num) if decay_lr else learning_rate
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_ratio']
        group['momentum'] = 0.85 + 0.1 * min(iter_num / 300, 1.0)  # of Muon alone; this warmup is modded-nanogpt's
    if dropout > 0.0:
        torch.manual_seed(int(batches.random_numbers(seed, DROPOUT + rank, iter_num, 1)[0]))
    xs, ys = get_batch('train', train_starts(iter_num)[rank::world_size])  # (micro-batches, batch_size, block_size)
    shares = hardware.shares(ys)  # of the global batch's loss, which is the mean over all its targets that count
    data['train'].read_ahead(train_starts(iter_num + 1)[rank::world_size])
    loss_sum = torch.zeros((), device=device)
    for micro_step, (x, y, share) in enumerate(zip(xs, ys, shares)):
        if world_size > 1:  # with DDP gradients travel once an iteration, not once a micro-batch
            model.require_backward_grad_sync = micro_step == len(shares) - 1
        with ctx:
            loss = model(x, y)[1] * share
        loss_sum += loss.detach()
        scaler.scale(loss).backward()
    scaler.unscale_(opt)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in raw_model.parameters() if p.grad is not None])
    if grad_clip > 0.0:
        torch.nn.utils.clip_grads_with_norm_(raw_model.parameters(), grad_clip, grad_norm)
    settle_last_step()  # now, while the device is busy with this step: nothing waits
    loss = hardware.mean_over_processes(loss_sum)
    grad_norm = grad_norm.full_tensor() if fsdp else grad_norm
    skip = step_guard.judge(iter_num, loss, grad_norm, scaled=scaler.is_enabled())
    opt.found_inf = skip.float() if opt.defaults['fused'] else None  # where it is 1 this step changes nothing
    if (opt.defaults['fused'] and not scaler.is_enabled()) or not skip:  # to look at skip is to wait for the device
        scaler.step(opt)
    scaler.update()
    opt.zero_grad(set_to_none=world_size == 1 or fsdp)  # or DDP's gradients would leave its buckets
    iter_num += 1

    # log; nothing below changes the run
    if (iter_num - 1) % log_interval == 0 and rank == 0:
        loss = loss.item()  # waits for the device
        train_s, t0 = train_s + time.perf_counter() - t0, time.perf_counter()
        log.iteration(iter_num - 1, loss, lr, grad_norm, train_s, hardware.memory_gb(device))
    if rank == 0:
        log.progress(iter_num)

if rank == 0 and not eval_only:
    log.close(done, iter_num, best_val_loss, train_s)
hardware.leave(0 if eval_only or done else settings.RESUMABLE)
