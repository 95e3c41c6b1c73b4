"""
OpenWebText: 8 million web pages that Reddit users linked to, an open copy of GPT-2's training data.

python data/openwebtext/prepare.py                   # 24 GB to stream, 18 GB of bins
python data/openwebtext/prepare.py --fraction=0.01   # 1%, the same pages each time
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.pipeline import prepare

prepare(
    __file__, __doc__, config='train_gpt2.py', val_fraction=0.0005,  # as in nanoGPT
    source='hf://datasets/Skylion007/openwebtext/*.parquet',
    others="Others: --source='hf://datasets/Skylion007/openwebtext@refs/convert/parquet/*.parquet', "
           'or data/fineweb_edu/prepare.py')
