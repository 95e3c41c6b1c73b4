# GPT-2's size (12 layers, 768 wide) by the modern recipe, on one node of 8 GPUs:
#
#   python data/fineweb_edu/prepare.py --fraction=0.3
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2_fast.py
#
# The settings are those of the best plain Muon of modded-nanogpt's fixed-architecture track (2026-06-11, run 36 of
# https://github.com/KellerJordan/modded-nanogpt, records/track_3_optimization), which needs 3,250 iterations, 1.70
# billion tokens, to a validation loss of 3.28 on FineWeb; llm.c needed 10.26 billion. The model there has biases and
# gains, RoPE for half the channels, and no smear; its embedding begins at a deviation of 1 and has a rate of 0.7, ours
# at 0.3, with the same ratio. Its weight decay of 0.001 for AdamW's parameters is left out.
# NOT RUN TO ITS END YET (docs/measurements.md); the loss on FineWeb-Edu will be another number.
out_dir = 'out-gpt2-fast'
wandb_log = True
wandb_project = 'fineweb-edu'
wandb_run_name = 'gpt2-124M-fast'

dataset = 'fineweb_edu'
shuffle = True

# 16 sequences x 1024 tokens x (4 micro-batches x 8 GPUs) = 524,288 tokens an iteration
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 4 * 8

# 3,250 iterations x 524,288 = 1.70 billion tokens
max_iters = 3250
lr_decay_iters = 3250

modern = True
n_head = 6  # heads of 128 channels
softcap = 15.0
zero_init = True

optimizer = 'muon'
muon_lr = 0.025
learning_rate = 0.004  # of the output layer
embed_lr = 0.21
vector_lr = 0.015
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.05
grad_clip = 0.0  # Muon's steps have one size whatever the gradient's

schedule = 'wsd'
cooldown = 0.7
warmup_iters = 0
min_lr = 0.0

eval_interval = 250
eval_iters = 200
log_interval = 10
