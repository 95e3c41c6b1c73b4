# Teach GPT-2 XL (1558M) the style of Shakespeare; GPT-2's own weights are the start.
#
#   python data/shakespeare/prepare.py
#   python train.py config/finetune_shakespeare.py
#
# On less memory: --init_from=gpt2 (or -medium, -large), a smaller --block_size, --gradient_checkpointing=True.
import time

out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False  # feel free to turn it on
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False  # the best weights are in ckpt.pt; a state to resume from only where the loss improves

# 1 sequence x 32 micro-batches x 1024 tokens = 32,768 tokens an iteration; the corpus has 301,966,
# so that an epoch is about 9 iterations
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False
