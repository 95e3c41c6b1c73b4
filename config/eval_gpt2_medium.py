# What OpenAI's gpt2-medium (350M parameters) scores on OpenWebText; it trains nothing and writes nothing.
#
#   python train.py config/eval_gpt2_medium.py
#
# nanoGPT reports a train loss of 2.85 and a val loss of 2.84.
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = 'gpt2-medium'
