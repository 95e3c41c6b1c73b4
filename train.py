"""
Train a GPT. One process, or as many as torchrun starts; a GPU, or a laptop.

python train.py config/quickstart.py                   # a first model from text that Python brings along
python train.py config/train_shakespeare_char.py       # after python data/shakespeare_char/prepare.py
python train.py config/train_shakespeare_char.py --init_from=auto        # resume it, or start if there is nothing yet
torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py   # GPT-2 124M on 8 GPUs, val loss about 2.85
torchrun --nnodes=2 --nproc_per_node=8 --node_rank=0 --master_addr=IP --master_port=1234 train.py  # node 1: node_rank=1

What it writes in out_dir: ckpt.pt (the best weights), last.pt and prev.pt (to resume from), metrics.jsonl.
"""
import math
import os
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
sample_prompts = []                # texts to continue at every evaluation, as ['ROMEO:', '']; into out_dir/samples
# start
init_from = 'scratch'              # scratch, resume, auto; gpt2[-medium|-large|-xl] or any GPT-2 on Hugging Face or in
                                   # a folder; a checkpoint file or another run's out_dir (its weights, iteration 0)
seed = 1337                        # of the weights, the order of the data, dropout and the samples
# wandb
wandb_log = False
wandb_project = 'owt'
wandb_run_name = 'gpt2'
# data
dataset = 'openwebtext'            # a folder in data/, or a path to one: train.bin, val.bin, meta.json
auto_prepare = False               # run the dataset's prepare.py if it has no train.bin yet
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
gradient_checkpointing = False     # recompute activations in the backward pass: less memory, more time
# AdamW
learning_rate = 6e-4               # the highest
max_iters = 600000                 # updates
weight_decay = 1e-1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0                    # the gradient's largest norm; 0.0: no clipping
# learning rate schedule: linear warmup, then a cosine
decay_lr = True                    # False: learning_rate throughout
warmup_iters = 2000                # iterations
lr_decay_iters = 600000            # iterations until min_lr; about max_iters (Chinchilla)
min_lr = 6e-5                      # about learning_rate / 10 (Chinchilla)
# system
backend = 'auto'                   # between processes: nccl, gloo; auto: nccl on GPUs, gloo on CPUs
device = 'auto'                    # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'                     # float32, bfloat16, float16 (with loss scaling); auto: what the GPU is fast in
compile = True                     # torch.compile, where it works
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

from dataclasses import asdict

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common import bins, hardware, runlog, tokenizer
from common import checkpoint as checkpoint_file
from common.hardware import print0
from model import GPT, GPTConfig, load_weights

rank, world_size = hardware.rank(), hardware.world_size()
data_dir = bins.find(root, dataset)


def check_settings():
    """ValueError, with what to type instead, for settings that cannot work."""
    at_least = dict.fromkeys(('n_layer', 'n_head', 'n_embd', 'batch_size', 'block_size', 'gradient_accumulation_steps',
                              'eval_interval', 'log_interval', 'lr_decay_iters'), 1)
    at_least.update(dict.fromkeys(('max_iters', 'eval_iters', 'keep_interval', 'warmup_iters', 'learning_rate',
                                   'min_lr', 'weight_decay', 'grad_clip', 'dropout', 'beta1', 'beta2', 'seed'), 0))
    for key, least in at_least.items():
        if globals()[key] < least:
            raise ValueError(f'{key}={globals()[key]} is below {least}')
    for key in ('dropout', 'beta1', 'beta2'):
        if globals()[key] >= 1:
            raise ValueError(f'{key}={globals()[key]} is not below 1')
    above = -(-gradient_accumulation_steps // world_size) * world_size
    if above != gradient_accumulation_steps:
        below = f'--gradient_accumulation_steps={above - world_size} or ' if above > world_size else ''
        raise ValueError(f'gradient_accumulation_steps={gradient_accumulation_steps} is not divisible by the '
                         f'{world_size} processes that share it; try {below}--gradient_accumulation_steps={above}')
    if decay_lr and warmup_iters >= lr_decay_iters:
        raise ValueError(f'warmup_iters={warmup_iters} is not below lr_decay_iters={lr_decay_iters}; '
                         f'try --warmup_iters={lr_decay_iters // 20}')
    if keep_interval % eval_interval != 0:
        raise ValueError(f'keep_interval={keep_interval} is not a multiple of eval_interval={eval_interval}; '
                         f'try --keep_interval={-(-keep_interval // eval_interval) * eval_interval}')


def load_model():
    """(model, checkpoint, path): the GPT to train; the state to resume from and its file, or None."""
    shape = {key: globals()[key] for key in ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'activation')}
    if init_from in ('resume', 'auto'):
        try:
            checkpoint, path = checkpoint_file.load_newest(out_dir)
            model = GPT.from_checkpoint(checkpoint, dropout=dropout)
            tokenizer.check_same(meta, checkpoint.get('meta'), model.config.vocab_size)
            checkpoint_file.check_same_model(shape, checkpoint, out_dir)
            return model, checkpoint, path
        except FileNotFoundError:
            if init_from == 'resume':
                raise
    if init_from in ('scratch', 'auto'):
        torch.manual_seed(seed)  # the same weights in every process
        return GPT(GPTConfig(**shape, vocab_size=tokenizer.padded_vocab_size(meta), dropout=dropout)), None, None
    model, source = load_weights(init_from, dropout=dropout)
    tokenizer.check_same(meta, source and source.get('meta'), model.config.vocab_size)
    if block_size != model.config.block_size:
        model.crop_block_size(block_size)
    print0(f'{init_from} sets ' + ', '.join(f'{key}={getattr(model.config, key)}' for key in shape))
    return model, None, None


# a mistake of the user's shows here, before any work
try:
    check_settings()
    device = hardware.resolve_device(device)
    dtype = hardware.resolve_dtype(dtype, device)
    hardware.start_processes(backend, device)
    if auto_prepare:
        if hardware.local_rank() == 0 and not os.path.exists(os.path.join(data_dir, 'train.bin')):
            bins.prepare(data_dir)
        hardware.barrier()
    meta = bins.read_meta(data_dir)
    data_size = bins.check(data_dir, meta, block_size)  # tokens in each split
    prompts = tokenizer.encode_prompts(meta, sample_prompts)
    raw_model, checkpoint, path = load_model()
    device_type = device.partition(':')[0]
    raw_model.to(device)
    optimizer = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2), device_type)
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
    iter_num, best_val_loss, train_s = 0, math.inf, 0.0
    if checkpoint is not None:
        checkpoint_file.load_optimizer(optimizer, scaler, checkpoint)
        iter_num, best_val_loss = checkpoint['iter_num'], float(checkpoint['best_val_loss'])
        train_s = checkpoint.get('train_s', 0.0)
        print0(f'resuming {path} at iteration {iter_num}')
    if hardware.all_reduce([iter_num], device)[0] != iter_num * world_size:
        raise ValueError(f'the processes found different states in {out_dir}; it must be on a disk that all share')
    if rank == 0 and not eval_only:
        os.makedirs(out_dir, exist_ok=True)
        if checkpoint is not None:
            checkpoint_file.keep_good(out_dir, path)
        else:
            previous = checkpoint_file.set_aside(out_dir)
            if previous:
                print0(f'{out_dir} held a run already; it is now in {previous}')
except (ValueError, OSError) as error:
    hardware.stop(error)

first_iter, checkpoint = iter_num, None  # None frees the memory
tokens_per_iter = gradient_accumulation_steps * batch_size * block_size
model_args = asdict(raw_model.config)
config = {key: globals()[key] for key in config_keys}  # with device and dtype resolved
ctx = hardware.autocast(device, dtype)
print0(f'data: {dataset}, {data_size["train"]:,} tokens to train on and {data_size["val"]:,} to validate')
print0(f'model: {raw_model.get_num_params() / 1e6:.2f}M parameters')
print0(f'run: {device}, {dtype}, processes: {world_size}, tokens per iteration will be: {tokens_per_iter:,}')


def random_numbers(stream, i, count):
    """
    (count,) uint64, a function of (seed, stream, i) alone: no generator whose state a resume would need, or that an
    evaluation could disturb, and the same on any number of processes. Philox: Salmon et al. 2011.
    """
    return np.random.Philox(key=[seed, stream], counter=[0, 0, 0, i]).random_raw(count)


def get_batch(split, starts):
    """x, y (B, block_size) on the device: the ids from each of `starts` (B,), and those one further on."""
    tokens = bins.open_tokens(data_dir, split, meta)  # opened anew: a mapping keeps every page that it ever touched
    positions = starts[:, None] + np.arange(block_size + 1)  # (B, block_size + 1)
    ids = torch.from_numpy(tokens[np.minimum(positions, len(tokens) - 1)].astype(np.int64))
    ids[torch.from_numpy(positions >= len(tokens))] = -1  # past the end, where the last window of a split may reach
    if device_type == 'cuda':
        ids = ids.pin_memory()  # lets the copy run beside the computation
    ids = ids.to(device, non_blocking=True)
    return ids[:, :-1].clamp(min=0), ids[:, 1:].contiguous()


def eval_batches(split):
    """The starts of every batch of an evaluation, the same each time; this process's share, (n, batch_size)."""
    size = data_size[split]
    if eval_iters > 0:  # spread evenly over the split, which estimates its loss better than random places do
        starts = np.linspace(0, size - block_size - 1, eval_iters * batch_size)
    else:  # windows side by side over the whole validation split, and over a piece of train as long
        starts = np.arange(0, min(size, data_size['val']) - 1, block_size)
        starts = np.append(starts, np.full(-len(starts) % batch_size, size))  # fills the last batch; counts for nothing
    return starts.astype(np.int64).reshape(-1, batch_size)[rank::world_size]


@torch.no_grad()
def estimate_loss():
    """{'train': (loss, accuracy), 'val': ...}, each a mean over all scored tokens of all processes."""
    raw_model.eval()
    result = {}
    for split in ('train', 'val'):
        sums = [torch.zeros(3, device=device)]
        for starts in tqdm(eval_batches(split), f'evaluating {split}', delay=5, leave=False, disable=rank > 0):
            x, y = get_batch(split, starts)
            with ctx:
                logits, loss = compiled_model(x, y)
            counted = (y >= 0).sum()
            sums.append(torch.stack((loss * counted, (logits.argmax(dim=-1) == y).sum(), counted)))
        loss, correct, counted = hardware.all_reduce(torch.stack(sums).cpu().double().sum(dim=0), device)
        result[split] = loss / counted, correct / counted
    raw_model.train()
    return result


def sample_texts():
    """Each of sample_prompts continued by 200 tokens, with the same random numbers every time."""
    raw_model.eval()
    texts, generator = [], torch.Generator(device).manual_seed(seed)
    for prompt in prompts:
        with ctx:
            ids = raw_model.generate(torch.tensor([prompt], device=device), 200, temperature=0.8, top_k=200,
                                 vocab_size=meta['vocab_size'], generator=generator)
        texts.append(tokenizer.from_meta(meta).decode(ids[0].tolist()))
    raw_model.train()
    return texts


def get_lr(it):
    """The learning rate of iteration `it`: linear warmup, a cosine down to min_lr, then min_lr."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    progress = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (learning_rate - min_lr)


# raw_model is saved and sampled from; compiled_model runs the same weights faster; model averages gradients as well
raw_model.gradient_checkpointing = gradient_checkpointing
model = compiled_model = raw_model
if compile:
    def trial(compiled):
        with ctx:
            compiled(*get_batch('train', np.arange(batch_size)))[1].backward()
        raw_model.zero_grad(set_to_none=True)

    model = compiled_model = hardware.compile_or_eager(raw_model, trial)
if world_size > 1:
    model = DistributedDataParallel(compiled_model, device_ids=[device] if device_type == 'cuda' else None)
if rank == 0 and not eval_only:
    wandb_settings = dict(project=wandb_project, name=wandb_run_name) if wandb_log else None
    log = runlog.RunLog(out_dir, {**config, **model_args}, first_iter, train_s, tokens_per_iter, wandb_settings,
                        raw_model.flops_per_token(), hardware.peak_flops(device, dtype))

TRAIN, DROPOUT = 0, 1  # streams of random numbers; DROPOUT + rank is each process's own
texts = []
t0 = time.perf_counter()
while True:
    # evaluate and save; the clock of training stands still meanwhile
    done = iter_num >= max_iters
    if iter_num % eval_interval == 0 or done or eval_only:
        hardware.synchronize(device)
        train_s += time.perf_counter() - t0
        losses = estimate_loss()
        (train_loss, _), (val_loss, val_acc) = losses['train'], losses['val']
        print0(f'step {iter_num}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, '
               f'perplexity {runlog.perplexity(val_loss):.2f}, accuracy {100 * val_acc:.1f}%')
        if eval_only:
            break
        improved = val_loss < best_val_loss
        best_val_loss = val_loss if improved else best_val_loss
        if rank == 0:
            log.evaluation(iter_num, train_loss, val_loss, val_acc, train_s)
            weights = dict(model=raw_model.state_dict(), model_args=model_args, config=config, meta=meta,
                           iter_num=iter_num, best_val_loss=best_val_loss, train_s=train_s,
                           format=checkpoint_file.FORMAT)
            if done or improved or (always_save_checkpoint and iter_num > first_iter):
                state = dict(weights, optimizer=optimizer.state_dict(), scaler=scaler.state_dict())
                checkpoint_file.save_last(state, out_dir)  # before ckpt.pt, which may be the state of a nanoGPT run
            if improved:
                checkpoint_file.save(weights, os.path.join(out_dir, 'ckpt.pt'))
            if keep_interval and iter_num > 0 and iter_num % keep_interval == 0:
                checkpoint_file.save(weights, os.path.join(out_dir, f'iter_{iter_num:06d}.pt'))
            if prompts:
                texts = sample_texts()
                log.samples(iter_num, texts)
        t0 = time.perf_counter()
    if done:
        break

    # the step: the gradient of the global batch, of which each process takes every world_size-th micro-batch
    lr = get_lr(iter_num) if decay_lr else learning_rate
    for group in optimizer.param_groups:
        group['lr'] = lr
    if dropout > 0.0:
        torch.manual_seed(int(random_numbers(DROPOUT + rank, iter_num, 1)[0]))
    starts = random_numbers(TRAIN, iter_num, gradient_accumulation_steps * batch_size)
    starts = (starts % np.uint64(data_size['train'] - block_size)).astype(np.int64)
    micro_batches = starts.reshape(-1, batch_size)[rank::world_size]
    loss_sum = torch.zeros((), device=device)
    for micro_step, micro_starts in enumerate(micro_batches):
        x, y = get_batch('train', micro_starts)
        if world_size > 1:  # gradients travel once an iteration, not once a micro-batch
            model.require_backward_grad_sync = micro_step == len(micro_batches) - 1
        with ctx:
            _, loss = model(x, y)
            loss = loss / len(micro_batches)
        loss_sum += loss.detach()
        scaler.scale(loss).backward()
    grad_norm = None
    if grad_clip != 0.0:
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1

    # log; nothing below changes the run
    if (iter_num - 1) % log_interval == 0:
        loss = hardware.all_reduce([loss_sum], device)[0] / world_size  # also waits for the device
        train_s, t0 = train_s + time.perf_counter() - t0, time.perf_counter()
        if rank == 0:
            log.iteration(iter_num - 1, loss, lr, grad_norm, train_s, hardware.memory_gb(device))

if rank == 0 and not eval_only:
    log.done(iter_num, best_val_loss, train_s, texts)
hardware.stop_processes()
