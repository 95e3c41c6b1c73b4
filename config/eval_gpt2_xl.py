# What OpenAI's gpt2-xl (1558M parameters) scores on OpenWebText; it trains nothing and writes nothing.
#
#   python train.py config/eval_gpt2_xl.py
#
# nanoGPT reports a train loss of 2.56 and a val loss of 2.54.
batch_size = 8
eval_iters = 500
eval_only = True
wandb_log = False
init_from = 'gpt2-xl'
