"""
FineWeb-Edu: web pages that a classifier found educational. This is its sample of 10 billion tokens, 28.5 GB to stream.
Only the tokens are stored.

python data/fineweb_edu/prepare.py                                     # all of it: 20 GB of bins
python data/fineweb_edu/prepare.py --fraction=0.01                     # 1%, the same pages each time: 100M tokens
python data/fineweb_edu/prepare.py --input='sample/10BT/*.parquet'     # from files on this disk
python data/fineweb_edu/prepare.py --source='hf://datasets/HuggingFaceFW/fineweb-edu/sample/100BT/*.parquet'
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from corpus.pipeline import prepare

prepare(
    __file__, __doc__, val_fraction=0.001, config='train_fineweb_edu.py',
    source='hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet',
    others='''Others: --source='hf://datasets/HuggingFaceFW/fineweb-edu/data/CC-MAIN-2024-10/*.parquet' (one crawl), '''
           "--source='hf://datasets/HuggingFaceFW/fineweb/sample/10BT/*.parquet' (not filtered)")
