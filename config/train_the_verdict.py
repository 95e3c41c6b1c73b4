# A model that learns a short story by heart, and a validation loss that shows it: 5,146 tokens are too few for English.
#
#   python data/the_verdict/prepare.py
#   python train.py config/train_the_verdict.py
#   python sample.py --out_dir=out-the-verdict --start='I had always thought'
#
# 7.2M parameters, 6.4M of them GPT-2's vocabulary. On 2 CPU cores the best validation loss is 5.96, after 200
# iterations; it ends after 300, in 1.5 minutes, with a train loss of 3.17. A better first model: config/quickstart.py.
out_dir = 'out-the-verdict'
eval_interval = 20
eval_iters = 0  # all of val, which is short
log_interval = 20
sample_prompts = 'I HAD always thought'

dataset = 'the_verdict'
# 8 sequences x 64 tokens = 512 tokens an iteration, 9 iterations an epoch
batch_size = 8
block_size = 64
gradient_accumulation_steps = 1

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.1

learning_rate = 1e-3
min_lr = 1e-4
max_iters = 400
lr_decay_iters = 400
warmup_iters = 20
patience = 5  # evaluations without improvement that end the run

compile = False  # compiling would take longer than it saves
