"""
Tiny Shakespeare (1.1 MB, public domain), one id per character.

python data/shakespeare_char/prepare.py                 # downloads it, once
python data/shakespeare_char/prepare.py --input=FILE    # without a network

Expect 1,115,394 characters, 65 distinct; train has 1,003,854 tokens, val has 111,540.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.pipeline import prepare

prepare(
    __file__, __doc__, tokenizer='char', expected=(1003854, 111540), config='train_shakespeare_char.py',
    source='https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt',
    sha256='86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed')
