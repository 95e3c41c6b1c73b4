"""What the prepare scripts share: each of them calls prepare() in pipeline.py, which shows the order of the work."""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)  # for common/
