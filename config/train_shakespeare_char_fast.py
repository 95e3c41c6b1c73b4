# tiny Shakespeare by the modern recipe: what config/train_shakespeare_char.py reaches, in a fraction of its time.
#
#   python data/shakespeare_char/prepare.py
#   python train.py config/train_shakespeare_char_fast.py
#
# Where there is no GPU: 2 layers, 128 wide, 0.41M parameters, half of the classic config's, and as many characters an
# iteration, 12 x 64 = 768. On the whole validation split it comes to 1.90 in 6 to 7 seconds on 2 cores, where the
# classic recipe takes 2,000 iterations and 78 to 91 seconds, and it ends at 1.79 to 1.81 in 9 to 11. Given the classic
# one's time it comes to 1.556 (docs/recipe.md):
#   python train.py config/train_shakespeare_char_fast.py --max_iters=2500 --lr_decay_iters=2500
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
shuffle = True
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
learning_rate = 5e-3  # of the output layer
embed_lr = 0.1
vector_lr = 0.1       # of the smear
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0
grad_clip = 0.0  # Muon's steps have one size whatever the gradient's

schedule = 'linear'
warmup_iters = 0
max_iters = 700
lr_decay_iters = 700
min_lr = 1.5e-4

if not has_gpu():
    print0('no GPU here: taking the small settings (2 layers, 128 wide, 64 characters of context)')
    eval_interval = 50
    eval_iters = 20
    batch_size = 12
    block_size = 64
    n_layer = 2
    n_head = 4
    n_embd = 128
    dropout = 0.0
    muon_lr = 0.025
    max_iters = 300
    lr_decay_iters = 300
    compile = False  # compiling would take longer than it saves
