"""What the microscope packed into a page, read back."""
import base64
import gzip
import json
import re

import numpy as np


def unpacked(page):
    """(header, [(header, arrays) of each model]) of the text of a page."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    content = gzip.decompress(base64.b64decode(data['packed']))
    length = int.from_bytes(content[:4], 'little')
    header, start = json.loads(content[4:4 + length]), 4 + -(-length // 4) * 4
    found = []
    for model in header['models']:
        arrays = {name: np.frombuffer(content, kind, int(np.prod(shape)), start + offset).reshape(shape)
                  for name, (kind, shape, offset) in model['places'].items()}
        found.append((model, arrays))
    return header, found
