# A first model in Korean, with a vocabulary that is learned from its text.
#
# The text: Debian's descriptions of its packages, 1.08 million characters, about as long as tiny Shakespeare, and a
# download of 0.6 MB. On Debian, Ubuntu and WSL, after `sudo apt-get install curl bzip2` if they are not there:
#
#   mkdir -p data/korean
#   curl -L http://deb.debian.org/debian/dists/bookworm/main/i18n/Translation-ko.bz2 | bunzip2 |
#     awk 'BEGIN {RS=""; FS="\n"} !seen[$2]++ {for (i=3; i<=NF; i++) print $i; print "<|endoftext|>"}' |
#     sed 's/^Description-ko: //; s/^ \.$//; s/^ //' > data/korean/input.txt
#
# The figures are for the file of November 2026, sha256 of input.txt 1d28d519f8aefa70... Then:
#
#   python data/text/prepare.py --input=data/korean/input.txt --vocab_size=4096 --out=data/korean
#   python train.py config/train_korean.py
#   python sample.py --out_dir=out-korean --start='이 패키지는'
#
# Where there is no GPU: 2 layers, 192 wide, 2.46M parameters, 1.57M of them the vocabulary's. 1,380 iterations x 1,024
# tokens are 3.2 epochs. Expect a validation loss of 4.35 to 4.37, which is 1.44 to 1.45 bits per byte, after 3 minutes
# on 2 cores, and sentences that are Korean and mean little. Much is learned by heart: the train loss ends at 3.32, but
# dropout 0.1 makes it worse, 1.457 bits per byte. A tenth of val stands in train, too, in pieces of 50 characters and
# more: packages of one family share sentences.
#
# Losses with other vocabularies compare in bits per byte. With as much arithmetic: 1.447 with 2,000 tokens, and 1.433
# by characters (4 x 256, 2,070 iterations), which so small a text suits well; but in 4,096 a context holds 2.2 times
# as much text, and writing takes 2.2 times fewer steps. In 900 iterations of 12 x 64, 128 wide: 1.649 by characters,
# 1.573 with 2,000, 1.546 with 4,096, 1.555 with 8,192.
#
# On a GPU: 6 layers, 384 wide, 64 x 256 = 16,384 tokens an iteration. Not measured yet: the number of iterations is a
# guess.
#
# A next step, with a GPU: Korean Wikipedia, three files of 782 MB together. Not tried yet.
#   python data/text/prepare.py --source='hf://datasets/wikimedia/wikipedia/20231101.ko/*.parquet' \
#     --vocab_size=16384 --out=data/korean_wikipedia
#   python train.py config/train_tinystories.py --dataset=korean_wikipedia --out_dir=out-korean-wikipedia \
#     --sample_prompts='대한민국은|서울의 날씨는'
from common.device import has_gpu
from common.distributed import print0

out_dir = 'out-korean'
eval_interval = 50
eval_iters = 0  # all of val
log_interval = 10
sample_prompts = '이 패키지는|리눅스에서'

dataset = 'korean'
shuffle = True
gradient_accumulation_steps = 1
# 64 sequences x 256 tokens = 16,384 tokens an iteration, 27 iterations an epoch
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
max_iters = 250
lr_decay_iters = 250
min_lr = 1.5e-4

if not has_gpu():
    print0('no GPU here: taking the small settings (2 layers, 192 wide, 128 tokens of context)')
    eval_interval = 460
    log_interval = 50
    # 8 x 128 = 1,024 tokens an iteration, 437 iterations an epoch
    batch_size = 8
    block_size = 128
    n_layer = 2
    n_head = 4
    n_embd = 192
    dropout = 0.0
    muon_lr = 0.025
    max_iters = 1380
    lr_decay_iters = 1380
    compile = False  # compiling would take longer than it saves
