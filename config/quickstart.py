# A first model, from nothing: the corpus is Python's own documentation, which comes with Python.
#
#   python train.py config/quickstart.py
#   python sample.py --out_dir=out-quickstart --start='The '
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

learning_rate = 1e-3
max_iters = 2000
lr_decay_iters = 2000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100

compile = False  # compiling would take longer than it saves
