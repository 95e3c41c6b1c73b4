# GPT-2's size (124M) on 10 billion tokens of educational web pages, on one node of 8 GPUs:
#
#   python data/fineweb_edu/prepare.py
#   torchrun --standalone --nproc_per_node=8 train.py config/train_fineweb_edu.py
#
# On one GPU, python train.py config/train_fineweb_edu.py is the same run, eight times as slow. A first look at 1%:
# python data/fineweb_edu/prepare.py --fraction=0.01, and --max_iters=190 --lr_decay_iters=190 --warmup_iters=20.
# llm.c reports a validation loss of 3.27 for this model after 10.26 billion tokens of FineWeb, 94 minutes on 8 A100s;
# that is other text, so that the figures compare only roughly. Ours is not run yet (docs/measurements.md). Started
# again, it goes on.
out_dir = 'out-fineweb-edu'
init_from = 'auto'
eval_interval = 250
eval_iters = 100
log_interval = 10
sample_prompts = 'The water cycle begins|In the year 1789|To solve the equation, we'
wandb_project = 'fineweb-edu'

dataset = 'fineweb_edu'
# 16 sequences x 1024 tokens x (4 micro-batches x 8 GPUs) = 524,288 tokens an iteration
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 4 * 8

n_layer = 12
n_head = 12
n_embd = 768

learning_rate = 6e-4
min_lr = 6e-5
weight_decay = 1e-1
# 19,073 iterations x 524,288 = 10 billion tokens, one epoch
max_iters = 19073
lr_decay_iters = 19073
warmup_iters = 700
