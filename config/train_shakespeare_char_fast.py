# tiny Shakespeare by the modern recipe: what config/train_shakespeare_char.py reaches, in a fraction of its time.
#
#   python data/shakespeare_char/prepare.py
#   python train.py config/train_shakespeare_char_fast.py
#
# Where there is no GPU: the classic config's small model (4 layers, 128 wide, 12 x 64 = 768 characters an iteration).
# After 170 iterations, 6 to 9 seconds on 2 cores, the validation loss is about 1.87 as printed, 1.89 on the whole
# split. The classic recipe takes 2,000 iterations and most of a minute to 1.88 and 1.90; given that time this one comes
# to 1.62 on the whole split:
#   python train.py config/train_shakespeare_char_fast.py --max_iters=1250 --lr_decay_iters=1250
#
# On a GPU: 6 layers, 384 wide, 64 x 256 = 16,384 characters an iteration. Not measured yet: the number of iterations
# is a guess.
from common.device import has_gpu
from common.distributed import print0

out_dir = 'out-shakespeare-char-fast'
eval_interval = 100
eval_iters = 200
log_interval = 10

dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

modern = True
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

optimizer = 'muon'
muon_lr = 0.02
learning_rate = 1e-2  # of the embedding and the output layer
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0
grad_clip = 0.0  # Muon's steps have one size whatever the gradient's

schedule = 'linear'
warmup_iters = 0
max_iters = 700
lr_decay_iters = 700
min_lr = 3e-4

if not has_gpu():
    print0('no GPU here: taking the small settings (4 layers, 128 wide, 64 characters of context)')
    eval_interval = 170
    eval_iters = 20
    batch_size = 12
    block_size = 64
    n_layer = 4
    n_head = 4
    n_embd = 128
    dropout = 0.0
    muon_lr = 0.03
    max_iters = 170
    lr_decay_iters = 170
    compile = False  # compiling would take longer than it saves
