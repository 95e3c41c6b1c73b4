"""
Check whether a dataset is still as it was made.

python data/corpus.py check data/shakespeare    # recount and re-hash it, show a piece of it
"""
import sys

from corpus import begin  # the folder corpus, which Python prefers to this file
from corpus.inspection import check
from corpus.plan import dataset_folder
from common.console import exit_on_error, stop  # importing corpus has put common/ into sys.path

begin()
if len(sys.argv) != 3 or sys.argv[1] != 'check' or not sys.argv[2]:
    stop('to check a dataset: python data/corpus.py check data/NAME')
with exit_on_error():
    check(dataset_folder(sys.argv[2]))
