"""
OpenWebText: 8 million web pages that Reddit users linked to, an open copy of what GPT-2 was trained on.

python data/openwebtext/prepare.py                   # 24 GB to stream, 18 GB of bins
python data/openwebtext/prepare.py --fraction=0.01   # one percent, always the same
"""
import os
import sys

folder = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(folder))
import corpus

corpus.prepare(
    folder, __doc__, val_fraction=0.0005,  # nanoGPT's
    config='train_gpt2.py',
    source='hf://datasets/Skylion007/openwebtext/*.parquet',
    others="Others: --source='hf://datasets/Skylion007/openwebtext@refs/convert/parquet/*.parquet', "
           'or data/fineweb_edu/prepare.py')
