# Teach a pre-trained model to answer: GPT-2 (124M), or one of your own, on 52,002 instructions.
#
#   python data/alpaca/prepare.py
#   python train.py config/finetune_alpaca.py
#   python sample.py --out_dir=out-alpaca --chat=True
#
# From a run of your own: --init_from=out-fineweb-edu. If it has another vocabulary, prepare the data with that:
# python data/alpaca/prepare.py --tokenizer=tinystories, and --init_from=out-tinystories with at most its --block_size.
# Only the answers count in the loss. Not run yet on the real data (docs/measurements.md).
out_dir = 'out-alpaca'
init_from = 'gpt2'
eval_interval = 50
eval_iters = 40
log_interval = 10
sample_prompts = ('### Instruction:\nName three colours.\n\n### Response:\n|'
                  '### Instruction:\nWhy is the sky blue?\n\n### Response:\n')
wandb_project = 'alpaca'

dataset = 'alpaca'
# 8 sequences x 512 tokens x 8 micro-batches = 32,768 tokens an iteration, about 300 instructions with their answers
batch_size = 8
block_size = 512
gradient_accumulation_steps = 8

learning_rate = 3e-5
min_lr = 3e-6
dropout = 0.1
# about 3 epochs; it ends earlier when the loss has not improved at 3 evaluations in a row
max_iters = 500
lr_decay_iters = 500
warmup_iters = 20
patience = 3
always_save_checkpoint = False  # the best weights are in ckpt.pt
