"""Files from the network: tried again when it fails, and kept only if they are those that are meant."""
import hashlib
import http.client
import os
import time
import urllib.request

from common.files import write_whole

WAITS = (1, 2, 5, 15, 30, 60)  # seconds before each retry when a network fails


def download(url, sha256, path, otherwise):
    """
    Download a file to `path`, unless it is there. It is kept only if its sha256 is right. ValueError with what to do
    `otherwise` (a sentence) if it cannot be had.
    """
    waits = list(WAITS[:2])
    while not os.path.exists(path):
        print(f'downloading {url}')
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
            wait(error, waits, f'cannot download {url} ({error}).\nWithout a network: put that file at {path}, or '
                 f'{otherwise}')
            continue
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise ValueError(f'{url} has changed: its sha256 is {found}, not {sha256}. If you trust it, save it and '
                             f'{otherwise}')
        own = f'{path}.{os.getpid()}'  # other processes may be at the same
        with write_whole(own, 'wb') as f:
            f.write(content)
        os.replace(own, path)


def wait(error, waits, failure, kind=ValueError):
    """Sleep for waits.pop(0) seconds. A `kind` with the text `failure` if none are left or a retry cannot help."""
    status = getattr(error, 'code', None) or getattr(getattr(error, 'response', None), 'status_code', 500)
    hopeless = isinstance(error, FileNotFoundError) or type(error).__name__ == 'OfflineModeIsEnabled'
    if not waits or hopeless or (status < 500 and status not in (408, 429)):
        raise kind(failure) from None
    print(f'{type(error).__name__}: {str(error)[:300]}; trying again in {waits[0]} s')
    time.sleep(waits.pop(0))
