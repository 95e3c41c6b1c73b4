# GPT-2 medium's size: 24 layers, 1024 wide, 16 heads, 354.6M parameters, 51.5M of them the embedding (a
# run prints 353.55M, which leaves out the positions).
#
#   python train.py config/large.py --dataset=fineweb_edu
#
# Memory on a V100 of 16 GB, derived and not measured: 6.4 GB for weights, gradients and AdamW, 0.8 MB a token for
# activations, 1.2 GB for logits: 10.9 GB at 4 x 1024, and room for 7 x 1024. With --gradient_checkpointing=True 7.8 GB,
# and room for 67 x 1024.
# 20 tokens a parameter (Hoffmann et al. 2022) are 7.1 billion: 13,500 iterations.
out_dir = 'out-large'
eval_interval = 250
eval_iters = 100
log_interval = 10

n_layer = 24
n_head = 16
n_embd = 1024

# 4 sequences x 1024 tokens x 128 micro-batches = 524,288 tokens an iteration
batch_size = 4
block_size = 1024
gradient_accumulation_steps = 128

learning_rate = 3e-4
min_lr = 3e-5
max_iters = 13500
lr_decay_iters = 13500
warmup_iters = 680
