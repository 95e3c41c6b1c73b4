# A first model, from nothing: its corpus is Python's own documentation, which comes with Python.
#
#   python train.py config/quickstart.py
#   python sample.py --out_dir=out-quickstart --start='The '
#
# 0.8M parameters, 12 x 64 = 768 characters an iteration, 1.2M in all, half of the corpus. Expect a validation loss of
# about 1.77 after a bit over a minute on 2 CPU cores.
out_dir = 'out-quickstart'
eval_interval = 250
eval_iters = 20
log_interval = 50
sample_prompts = ['The ', 'Return ']

dataset = 'pydoc_char'
auto_prepare = True
gradient_accumulation_steps = 1
batch_size = 12
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0

learning_rate = 6e-3  # on this corpus 3e-3 ends at 1.81, 1e-3 at 2.01
max_iters = 1500
lr_decay_iters = 1500
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 50

compile = False  # compiling would take longer than it saves
