"""
Train a GPT. One process, or as many as torchrun starts; a GPU, or a laptop.

python train.py config/quickstart.py                   # a first model, from text that comes with Python
python train.py config/train_shakespeare_char.py       # after python data/shakespeare_char/prepare.py
python train.py config/train_shakespeare_char.py --init_from=auto        # resume it, or start if there is nothing yet
torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py   # GPT-2 124M on 8 GPUs, val loss about 2.85
"""
import math
import os
import sys

# -----------------------------------------------------------------------------
# output, and where to start
out_dir = 'out'                    # folder, relative to the working directory; created if needed
eval_interval = 2000               # iterations between evaluations
eval_iters = 200                   # batches of each split in an evaluation; 0: the whole validation split
eval_only = False                  # evaluate once, write nothing, stop
log_interval = 1                   # iterations between lines
always_save_checkpoint = True      # save the full state at every evaluation; False: only when val loss improves
keep_interval = 0                  # iterations between weights that are kept for good (iter_010000.pt); 0: none
patience = 0                       # evaluations in a row without improvement that end the run; 0: none do
sample_prompts = ''                # texts to continue at each evaluation: 'ROMEO:|JULIET:', or LINES:FILE, one per line
evaluate_tasks = ''                # benchmarks, or files, to score at every evaluation: 'hellaswag:0.05,mine.jsonl'
tensorboard_log = False            # into out_dir/tensorboard
wandb_log = False                  # with WANDB_API_KEY from the environment, or from a file .env
wandb_project = 'owt'
wandb_run_name = 'gpt2'
init_from = 'scratch'              # scratch, resume, auto; or the weights of gpt2[-medium|-large|-xl], a run, a file
variant = ''                       # what is changed in the code, in a word: a report keeps such runs apart
seed = 1337                        # of the weights, the order of the data, dropout and the samples
# data
dataset = 'openwebtext'            # a folder in data/, or a path to one: train.bin, val.bin, meta.json
auto_prepare = False               # run the dataset's prepare.py if it has no train.bin yet
allow_data_change = False          # resume even if the dataset has changed since the run began
shuffle = False                    # take each piece of the text once an epoch; False: random places, as nanoGPT does
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
softcap = 0.0                      # logits are bounded, as softcap * tanh(logits / softcap); 0.0: they are not
zero_init = False                  # begin with zeros where a block ends, and in a modern model's output layer
gradient_checkpointing = False     # recompute activations in the backward pass: less memory, more time
# optimizer
optimizer = 'adamw'                # adamw, or muon: matrices of the blocks with Muon, the rest with AdamW; faster
learning_rate = 6e-4               # peak learning rate of AdamW
muon_lr = 0.02                     # peak learning rate of Muon; it follows the same schedule, as the next two do
embed_lr = 0.0                     # with muon: of embeddings, but not of one tied to the output; 0.0: learning_rate
vector_lr = 0.0                    # with muon: of biases, norms and a modern model's smear; 0.0: learning_rate
max_iters = 600000                 # updates
weight_decay = 1e-1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0                    # largest norm of the gradient; 0.0: no clipping
spike_z = 0.0                      # skip updates whose loss is so many deviations above the last 100; 0: never
max_skips = 10                     # skipped updates in a row (spikes, losses that are not finite) that end the run
# learning rate schedule: linear warmup, then down to min_lr
decay_lr = True                    # False: learning_rate throughout
schedule = 'cosine'                # cosine, linear, or wsd: level, then linear (warmup, stable, decay)
cooldown = 0.3                     # with wsd: the final fraction of lr_decay_iters, in which the rate decays
warmup_iters = 2000                # iterations
lr_decay_iters = 600000            # iterations until min_lr; about max_iters (Chinchilla)
min_lr = 6e-5                      # about learning_rate / 10 (Chinchilla)
# system
backend = 'auto'                   # of torch.distributed: nccl, gloo; auto: nccl on GPUs, gloo on CPUs
device = 'auto'                    # cuda, cuda:1, mps, cpu; auto: the best there is
dtype = 'auto'                     # float32, bfloat16, float16 (with loss scaling); auto: what the device is fast in
compile = True                     # torch.compile, where it works
fsdp = False                       # shard weights, gradients and moments over the processes: for larger models
compress_gradients = False         # without fsdp: send them in 16 bits, for GPUs that are joined by PCIe only
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, bool, str, list))]
root = os.path.dirname(os.path.abspath(__file__))
exec(open(os.path.join(root, 'configurator.py'), encoding='utf-8').read())  # before torch: help and typos at once
# -----------------------------------------------------------------------------

import numpy as np
import torch
from tqdm import tqdm

from common import dataset as datasets, device as devices, distributed, settings, tokenizer
from common.compile import compile_or_eager, training_trial
from common.console import bits_per_byte, exit_on_error
from common.distributed import print0
from common.training import batches, benchmarks, guard, moments, runlog, samples, states
from model import GPT, GPTConfig, load_weights

is_script = __name__ == '__main__'  # bench.py executes this file to measure train_step(): it must write nothing then

# 1) Settings and device, before any work: a mistake must show at once. The process group needs the device.
with exit_on_error():
    rank, world_size, _ = distributed.environment()
    settings.check(globals(), world_size)
    device = devices.resolve_device(device)
    dtype = devices.resolve_dtype(dtype, device)
    device_type = device.partition(':')[0]
    config = {key: globals()[key] for key in config_keys}
    devices.explain_out_of_memory(batch_size, gradient_accumulation_steps, gradient_checkpointing)
    distributed.start_processes(backend, device, compress_gradients and dtype)

# 2) The data, before the model: it says how large the vocabulary is.
with exit_on_error():
    data_dir = datasets.find(root, dataset)
    if auto_prepare:
        distributed.once_per_disk(lambda: datasets.prepare(data_dir))
    meta = datasets.read_meta(data_dir)
    data_size = datasets.check(data_dir, meta, block_size)  # tokens in each split
    data = {split: batches.Reader(data_dir, split, meta, block_size + 1, device) for split in datasets.SPLITS}
    prompts, questions = samples.encode_prompts(meta, sample_prompts), benchmarks.load(meta, evaluate_tasks)

# 3) The model: that of the run to resume, a new one, or one with other weights to start from.
with exit_on_error():
    shape = {key: config[key] for key in settings.SHAPE}
    state, path = states.load_to_resume(init_from, out_dir)
    if state is not None:
        raw_model = GPT.from_checkpoint(state, dropout=dropout)
        guard.check_resumed(state, raw_model.config, shape, meta, allow_data_change, out_dir)
    elif init_from in ('scratch', 'auto'):
        torch.manual_seed(seed)  # the same weights on every rank
        raw_model = GPT(GPTConfig(**shape, vocab_size=tokenizer.padded_vocab_size(meta), dropout=dropout), zero_init)
    else:
        raw_model, source = load_weights(init_from, dropout=dropout)
        guard.check_modern(modern, raw_model.config.modern, init_from)
        tokenizer.check_same(meta, source.get('meta'), raw_model.config.vocab_size)
        raw_model.crop_block_size(block_size)
        print0(f'{init_from} sets ' + ', '.join(f'{key}={getattr(raw_model.config, key)}' for key in shape))
    run = states.Progress.of(state)
    guard.check_same_on_all_ranks(run.iter_num, data_size, dtype, device, out_dir)
    guard.check_model(raw_model.config, device, dtype, gradient_checkpointing)
    model_args = dict(vars(raw_model.config))
    raw_model.gradient_checkpointing = gradient_checkpointing

# 4) The optimizer, after the model is on its device: it refers to the parameters there.
with exit_on_error():
    if fsdp:
        distributed.shard(raw_model, raw_model.transformer.h, device, dtype)
    else:
        raw_model.to(device)
    if not eval_only:
        muon = dict(muon_lr=muon_lr, embed_lr=embed_lr, vector_lr=vector_lr,
                    muon_dtype=devices.muon_dtype(device, dtype)) if optimizer == 'muon' else {}
        # from here on `optimizer` is the optimizer; the setting of that name is in config
        optimizer = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2), device_type, **muon)
        scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
        moments.load(raw_model, optimizer, scaler, state)
    if state is not None:
        print0(f'resuming {path} at iteration {run.iter_num}' + states.describe_changes(state, config))
    state = source = None  # free their memory

# 5) The folder of the run, last: it may set the files of an earlier run aside, so nothing above may fail after it.
tokens_per_iter = gradient_accumulation_steps * batch_size * block_size
stop_signal, log = guard.StopSignal(), None
if is_script:
    with exit_on_error():
        if rank == 0 and not eval_only:
            lock = states.claim_out_dir(out_dir, path)  # held until the process ends
            guard.check_disk(out_dir, {**config, **model_args}, raw_model.config.vocab_size)
            about = {**config, **model_args, 'parameters': raw_model.get_num_params(), 'data': datasets.identity(meta)}
            log = runlog.RunLog(about, run, tokens_per_iter, raw_model.flops_per_token(),
                                devices.peak_flops(device, dtype))
    print0(runlog.opening(dataset, data_size, raw_model.get_num_params(), variant, device, dtype, tokens_per_iter))
    stop_signal.install(saves=not eval_only)

# -- what the loop is made of -------------------------------------------------

step_guard = guard.StepGuard(spike_z, run.recent_losses, stop_signal)
ctx = devices.autocast(device, dtype, fsdp)
eval_starts = {split: batches.eval_starts(split, data_size, eval_iters, batch_size, block_size, gradient_checkpointing)
               for split in datasets.SPLITS}


def train_starts(i):
    """Where the sequences of the global batch of iteration i start, (gradient_accumulation_steps, batch_size)."""
    shape = gradient_accumulation_steps, batch_size
    return batches.train_starts(seed, i, shape, data_size['train'] - block_size, block_size, shuffle)


def get_batch(split, starts):
    """x, y (*starts.shape, block_size) on the device: the ids from each of `starts` on, and the same shifted by one."""
    ids, is_target = data[split].sequences(starts)
    return ids[..., :-1], torch.where(is_target, ids, -1)[..., 1:].contiguous()  # -1: no target


@torch.no_grad()
def estimate_loss():
    """(train_loss, val_loss, val_acc, val_bits_per_byte): means over all scored targets of all ranks."""
    raw_model.eval()
    scores = {}
    for split in datasets.SPLITS:
        sums = [torch.zeros(3, device=device)]
        for at in tqdm(eval_starts[split][rank::world_size], split, delay=5, leave=False, disable=rank > 0 or None):
            x, y = get_batch(split, at)
            with ctx:
                logits, loss = compiled_model(x, y)
            counted = (y >= 0).sum()
            sums.append(torch.stack((loss * counted, (logits.argmax(dim=-1) == y).sum(), counted)))
        sums = [*torch.stack(sums).cpu().double().sum(dim=0), stop_signal.requested()]
        loss, correct, counted, requests = distributed.all_reduce(sums, device)
        stop_signal.update(requests)
        scores[split] = guard.mean_scores(split, loss, correct, counted)
    raw_model.train()
    return scores['train'][0], *scores['val'], bits_per_byte(scores['val'][0], datasets.bytes_per_token(meta, 'val'))


def evaluate():
    """Evaluate, print, sample, score tasks and log. Returns the validation loss if it is the best so far, else None."""
    scores = _, val_loss, *_ = estimate_loss()
    print0(runlog.evaluation_line(run.iter_num, *scores))
    is_best = val_loss < run.best_val_loss
    run.evaluated_at = run.iter_num
    run.since_best = 0 if is_best else run.since_best + 1
    texts = samples.write(raw_model, prompts, meta, seed, ctx)
    accuracies = benchmarks.score(raw_model, questions, meta, ctx, stop_signal)
    if log:
        log.evaluation(run, *scores, texts, accuracies)
    return val_loss if is_best else None


def save(best):
    """Save the full state and, if `best` is a loss, the weights as ckpt.pt. Returns whether the state was written."""
    handle_skipped_update()
    weights = dict(vars(run), best_val_loss=run.best_val_loss if best is None else best, model_args=model_args,
                   model=distributed.gather(raw_model.state_dict()), config=config, meta=meta)
    full = dict(weights, optimizer=distributed.gather(optimizer.state_dict()), scaler=scaler.state_dict())
    written = states.save_run(out_dir, weights, full, best is not None, keep_interval) if rank == 0 else (0, 0)
    saved, best_saved = distributed.all_reduce(written, device)  # other ranks add 0
    run.best_val_loss = best if best_saved else run.best_val_loss
    return bool(saved)


def get_lr(it):
    """The learning rate of AdamW at iteration `it`: linear warmup, then the schedule. Others are proportional to it."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decayed = (it - warmup_iters) / (lr_decay_iters - warmup_iters)  # from 0 to 1
    level = {'cosine': 0.5 * (1.0 + math.cos(math.pi * decayed)),
             'linear': 1.0 - decayed,
             'wsd': min(1.0, (lr_decay_iters - it) / (cooldown * lr_decay_iters))}[schedule]
    return min_lr + level * (learning_rate - min_lr)


def handle_skipped_update():
    """If the last update was skipped, log its batch; too many in a row end the run."""
    skipped = step_guard.fetch_skipped()
    if skipped is not None and log:
        starts = train_starts(skipped).reshape(-1)
        log.skipped(skipped, step_guard.last_loss, starts.tolist(),
                    lambda: samples.decode_all(meta, get_batch('train', starts)[0].tolist()))
    step_guard.give_up_after(max_skips, out_dir)


def train_step(iter_num):
    """One update on the global batch; each rank takes every world_size-th micro-batch. Returns lr, loss, grad_norm."""
    lr = get_lr(iter_num) if decay_lr else learning_rate
    for group in optimizer.param_groups:
        group['lr'] = lr * group['lr_ratio']
        group['momentum'] = 0.85 + 0.1 * min(iter_num / 300, 1.0)  # of Muon only; this warmup is modded-nanogpt's
    if dropout > 0.0:
        torch.manual_seed(int(batches.random_numbers(seed, batches.DROPOUT + rank, iter_num, 1)[0]))
    xs, ys = get_batch('train', train_starts(iter_num)[rank::world_size])  # (micro-batches, batch_size, block_size)
    loss_weights = distributed.micro_batch_weights(ys, data['train'].masked)  # of a mean over the global batch
    data['train'].read_ahead(train_starts(iter_num + 1)[rank::world_size])
    loss_sum = torch.zeros((), device=device)
    for micro_step, (x, y, weight) in enumerate(zip(xs, ys, loss_weights)):
        if world_size > 1:  # DDP: average gradients over the ranks once an iteration, not once a micro-batch
            model.require_backward_grad_sync = micro_step == len(xs) - 1
        with ctx:
            loss = model(x, y)[1] * weight
        loss_sum += loss.detach()
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in raw_model.parameters() if p.grad is not None])
    if grad_clip > 0.0:
        torch.nn.utils.clip_grads_with_norm_(raw_model.parameters(), grad_clip, grad_norm)
    handle_skipped_update()  # of the iteration before, now, while the device is busy with this one
    loss, requests = distributed.mean_over_ranks(loss_sum, stop_signal.requested())  # of ranks that want to stop
    grad_norm = grad_norm.full_tensor() if fsdp else grad_norm
    skip = step_guard.check_update(iter_num, loss, requests, grad_norm, scaled=scaler.is_enabled())
    guard.update(optimizer, skip, grad_norm)
    scaler.update()
    optimizer.zero_grad(set_to_none=world_size == 1 or fsdp)  # DDP's gradients must stay in its buckets
    return lr, loss, grad_norm


# 6) Three views of the same weights: raw_model saves and samples, compiled_model evaluates, model (in DDP) trains.
model = raw_model
if world_size > 1 and not (fsdp or eval_only):
    model = distributed.data_parallel(raw_model, device, dtype, compress_gradients)
if compile:
    train_batch = None if eval_only else get_batch('train', np.arange(batch_size))
    eval_batch = get_batch('val', eval_starts['val'][0]) if is_script else None
    model = compile_or_eager(model, ctx, training_trial(train_batch, eval_batch))
compiled_model = getattr(model, 'module', model)  # without DDP

# -- the training loop --------------------------------------------------------

if is_script and eval_only:
    evaluate()
    distributed.shut_down(0)

elif is_script:
    clock = runlog.TrainingClock(run, device)
    while True:
        # evaluate: at iteration 0, every eval_interval iterations and at the end, unless it must stop
        due = run.iter_num % eval_interval == 0 or run.iter_num >= max_iters
        evaluating = due and run.evaluated_at != run.iter_num and not stop_signal.on_any_rank
        best = None
        if evaluating:
            with clock.paused():
                best = evaluate()

        # save: after an evaluation, and before the run ends for any reason
        done = (run.iter_num >= max_iters and run.evaluated_at == run.iter_num) or 0 < patience <= run.since_best
        stopping = stop_signal.on_any_rank
        keep = best is not None or always_save_checkpoint or states.is_kept(run.iter_num, keep_interval)
        untrained = run.iter_num == 0 and init_from in ('scratch', 'auto')  # there is nothing to keep
        if stopping or (evaluating and (done or (keep and not untrained))):
            with clock.paused():
                saved = save(best)
            if not saved and (done or stopping):
                sys.exit(1)
        elif best is not None:  # of an untrained model: it counts, but is not kept
            run.best_val_loss = best
        if done or stopping:
            break

        # step
        lr, loss, grad_norm = train_step(run.iter_num)
        run.iter_num += 1
        run.tokens += tokens_per_iter

        # log; nothing here changes the run
        if log and (run.iter_num - 1) % log_interval == 0:
            loss = loss.item()  # waits for the device, so that the clock is right
            clock.update()
            log.iteration(run, loss, lr, grad_norm, devices.memory_gb(device))
        if log:
            log.show_progress(run)

    if log:
        log.close(run, done)
    distributed.shut_down(0 if done else settings.RESUMABLE)
