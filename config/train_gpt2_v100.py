# GPT-2 (124M) on one Tesla V100 16GB, in float16 with loss scaling. Any dataset in GPT-2's tokens:
#
#   python data/fineweb_edu/prepare.py --fraction=0.3
#   python train.py config/train_gpt2_v100.py
#   python bench.py config/train_gpt2_v100.py --mode=plan --gpu=v100-16gb     # where the figures below come from
#
# Derived, not measured: 6.0 of 16 GB, 56,000 (as a published run) to 76,000 tokens/s, 9 to 12 hours. No loss after
# 2.5 billion tokens is published for it; after 10.26 billion of FineWeb, which is other text, llm.c reports 3.27.
out_dir = 'out-gpt2-v100'
dataset = 'fineweb_edu'

# 8 sequences x 1024 tokens x 60 micro-batches = 491,520 tokens an iteration, as config/train_gpt2.py
batch_size = 8
block_size = 1024
gradient_accumulation_steps = 60

# 5,000 iterations x 491,520 = 2.5 billion tokens, 20 for each parameter (Chinchilla)
max_iters = 5000
lr_decay_iters = 5000
warmup_iters = 250

eval_interval = 250
eval_iters = 100
log_interval = 1

dtype = 'float16'  # bfloat16 would be emulated
weight_decay = 1e-1
