# A first model, from nothing: its corpus is Python's own documentation, which comes with Python.
#
#   python train.py config/quickstart.py
#   python sample.py --out_dir=out-quickstart --start='The '
#
# 0.4M parameters by the modern recipe, 12 x 64 = 768 characters an iteration. Expect a validation loss of about 1.55
# after half a minute on 2 CPU cores.
out_dir = 'out-quickstart'
eval_interval = 300
eval_iters = 20
log_interval = 50
sample_prompts = 'The |Return '

dataset = 'pydoc_char'
auto_prepare = True
shuffle = True
gradient_accumulation_steps = 1
batch_size = 12
block_size = 64

modern = True
n_layer = 2
n_head = 4
n_embd = 128
dropout = 0.0

optimizer = 'muon'
muon_lr = 0.025
learning_rate = 5e-3  # of the output layer
embed_lr = 0.1
vector_lr = 0.1       # of the smear
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0
grad_clip = 0.0  # Muon's steps have one size whatever the gradient's

schedule = 'linear'
warmup_iters = 0
max_iters = 900
lr_decay_iters = 900
min_lr = 1.5e-4

compile = False  # compiling would take longer than it saves
