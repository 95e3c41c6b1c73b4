# What OpenAI's gpt2-large (774M parameters) scores on OpenWebText; it trains nothing and writes nothing.
#
#   python train.py config/eval_gpt2_large.py
#
# nanoGPT reports a train loss of 2.66 and a val loss of 2.67.
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = 'gpt2-large'
