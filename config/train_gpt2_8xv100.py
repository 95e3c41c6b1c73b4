# GPT-2 (124M) on 8 Tesla V100 (a DGX-1, or a p3.16xlarge), in float16 with loss scaling:
#
#   python data/fineweb_edu/prepare.py
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2_8xv100.py
#   python bench.py config/train_gpt2_8xv100.py --mode=plan --gpu=v100-16gb --gpus=8
#
# Derived, not measured: 6.0 of 16 GB on each, 445,000 to 608,000 tokens/s, 4.5 to 6.2 hours. llm.c reports a validation
# loss of 3.27 after 10.26 billion tokens of FineWeb, which is other text.
out_dir = 'out-gpt2-8xv100'
dataset = 'fineweb_edu'

# 8 sequences x 1024 tokens x (8 micro-batches x 8 GPUs) = 524,288 tokens an iteration
batch_size = 8
block_size = 1024
gradient_accumulation_steps = 8 * 8

# 19,000 iterations x 524,288 = 10 billion tokens, all of the sample
max_iters = 19000
lr_decay_iters = 19000
warmup_iters = 700

eval_interval = 500
eval_iters = 200
log_interval = 10

dtype = 'float16'  # bfloat16 would be emulated
weight_decay = 1e-1
