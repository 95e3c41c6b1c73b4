# A character-level model of tiny Shakespeare, a first run to see everything work.
#
#   python data/shakespeare_char/prepare.py
#   python train.py config/train_shakespeare_char.py
#
# On a GPU: 6 layers, 384 wide, 10.7M parameters, 64 x 256 = 16,384 tokens an iteration; nanoGPT reports a best
# validation loss of 1.4697 after 3 minutes on one A100.
# Where there is no GPU: 4 layers, 128 wide, 0.8M parameters, 12 x 64 = 768 tokens an iteration, which is nanoGPT's
# line for a laptop; validation loss about 1.88 after a minute on 2 cores (docs/measurements.md).
from common.device import has_gpu
from common.distributed import print0

out_dir = 'out-shakespeare-char'
eval_interval = 250
eval_iters = 200
log_interval = 10
wandb_log = False  # or --wandb_log=True
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256  # context of up to 256 previous characters

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # a small model can afford a higher one
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4  # learning_rate / 10
beta2 = 0.99  # a bit bigger, because there are few tokens in an iteration
warmup_iters = 100

if not has_gpu():
    print0('no GPU here: taking the small settings (4 layers, 128 wide, 64 characters of context)')
    eval_iters = 20
    batch_size = 12
    block_size = 64
    n_layer = 4
    n_head = 4
    n_embd = 128
    dropout = 0.0
    max_iters = 2000
    lr_decay_iters = 2000
    compile = False  # compiling would take longer than it saves
