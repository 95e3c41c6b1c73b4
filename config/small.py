# A small GPT: 8 layers, 512 wide, 8 heads, 51.5M parameters, 25.8M of them the embedding (a run
# prints 50.93M, which leaves out the positions).
#
#   python train.py config/small.py --dataset=fineweb_edu
#
# Memory on a V100 of 16 GB, derived and not measured: 0.9 GB for weights, gradients and AdamW, 0.13 MB a token for
# activations, 1.4 GB for logits: 3.9 GB at 12 x 1024. With --gradient_checkpointing=True 2.4 GB.
# 20 tokens a parameter (Hoffmann et al. 2022) are 1.03 billion: 2,100 iterations.
out_dir = 'out-small'
eval_interval = 100
eval_iters = 100
log_interval = 10

n_layer = 8
n_head = 8
n_embd = 512

# 12 sequences x 1024 tokens x 40 micro-batches = 491,520 tokens an iteration
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 40

learning_rate = 1e-3
min_lr = 1e-4
max_iters = 2100
lr_decay_iters = 2100
warmup_iters = 100
