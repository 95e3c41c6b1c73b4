"""What the prepare scripts share: each of them calls prepare() in pipeline.py, which shows the order of the work."""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)  # for common/
from common.console import explain, forget_torchrun, protect_output

sys.excepthook = explain  # before the imports of packages, which may be missing


def begin():
    """First thing in a script: a print cannot fail, and it is no rank of a run, whatever torchrun has set around it."""
    protect_output()
    forget_torchrun()
