# GPT-2's size: 12 layers, 768 wide, 12 heads, 124.4M parameters, 38.6M of them the embedding (a run
# prints 123.59M, which leaves out the positions).
#
#   python train.py config/base.py --dataset=fineweb_edu
#
# Memory on a V100 of 16 GB, derived and not measured: 2.2 GB for weights, gradients and AdamW, 0.3 MB a token for
# activations, 1.3 GB for logits: 6.0 GB at 8 x 1024. With --gradient_checkpointing=True 3.7 GB.
# 20 tokens a parameter (Hoffmann et al. 2022) are 2.49 billion: 4,750 iterations.
out_dir = 'out-base'
eval_interval = 250
eval_iters = 100
log_interval = 10

n_layer = 12
n_head = 12
n_embd = 768

# 8 sequences x 1024 tokens x 64 micro-batches = 524,288 tokens an iteration
batch_size = 8
block_size = 1024
gradient_accumulation_steps = 64

learning_rate = 6e-4
min_lr = 6e-5
max_iters = 4750
lr_decay_iters = 4750
warmup_iters = 240
