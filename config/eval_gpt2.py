# What OpenAI's gpt2 (124M parameters) scores on OpenWebText; it trains nothing and writes nothing.
#
#   python train.py config/eval_gpt2.py
#
# nanoGPT reports a train loss of 3.11 and a val loss of 3.12.
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = 'gpt2'
