# Short stories in simple words: the smallest text that gives a small model something to say.
#
#   python data/tinystories/prepare.py --vocab_size=4096
#   python train.py config/train_tinystories.py
#   python sample.py --out_dir=out-tinystories --start='Once upon a time'
#
# 8 layers, 512 wide, 27.6M parameters with a vocabulary of 4,096, 51.2M with GPT-2's (a run prints 0.3M
# less, without the positions). Not run to its end yet (docs/measurements.md); every evaluation writes two stories into
# out-tinystories/samples. Started again, it goes on.
out_dir = 'out-tinystories'
init_from = 'auto'
eval_interval = 500
eval_iters = 100
log_interval = 10
sample_prompts = 'Once upon a time|Lily and Tom went to the park.'
wandb_project = 'tinystories'

dataset = 'tinystories'
# 32 sequences x 512 tokens x 4 micro-batches = 65,536 tokens an iteration
batch_size = 32
block_size = 512
gradient_accumulation_steps = 4

n_layer = 8
n_head = 8
n_embd = 512

learning_rate = 1e-3
min_lr = 1e-4
# 10,000 iterations x 65,536 = 655 million tokens, a bit more than an epoch
max_iters = 10000
lr_decay_iters = 10000
warmup_iters = 500
