"""
What the prepare scripts share. Each of them calls prepare(); the work then goes through these modules:

    pipeline.py    the command line, and the order of the work
    plan.py        decide which files, which documents are for validation, and which vocabulary
    sources.py     find the files, here or on Hugging Face, or download one
    documents.py   read the documents in them
    encoding.py    turn documents into ids
    shards.py      write the ids so that an interruption loses little
    inspection.py  describe the dataset, and check it later
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)  # for common/

from corpus.pipeline import prepare
