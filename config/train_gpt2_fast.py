# GPT-2's size (12 layers, 768 wide) by the modern recipe, on one node of 8 GPUs:
#
#   python data/fineweb_edu/prepare.py --fraction=0.3
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2_fast.py
#
# The settings are those of the fifth record of modded-nanogpt (https://github.com/KellerJordan/modded-nanogpt), which
# reached llm.c's validation loss of 3.28 on FineWeb with 2.67 billion tokens instead of 10.26 billion; weight decay and
# cooldown are the later, best ones of its fixed-architecture track. AdamW's rate is that of the small models here. This
# config has not been run to its end yet (docs/measurements.md).
out_dir = 'out-gpt2-fast'
wandb_log = True
wandb_project = 'fineweb-edu'
wandb_run_name = 'gpt2-124M-fast'

dataset = 'fineweb_edu'

# 16 sequences x 1024 tokens x (4 micro-batches x 8 GPUs) = 524,288 tokens an iteration
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 4 * 8

# 5,100 iterations x 524,288 = 2.67 billion tokens
max_iters = 5100
lr_decay_iters = 5100

modern = True
n_head = 6  # heads of 128 channels

optimizer = 'muon'
muon_lr = 0.025
learning_rate = 1e-2  # of the embedding and the output layer
beta1 = 0.8
weight_decay = 0.05
grad_clip = 0.0  # Muon's steps have one size whatever the gradient's

schedule = 'wsd'
cooldown = 0.7
warmup_iters = 0
min_lr = 0.0

eval_interval = 250
eval_iters = 200
log_interval = 10
