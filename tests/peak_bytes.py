"""The most memory that tensors take, counted on tensors without data (FakeTensorMode) as well."""
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """The most bytes that the tensors made within it take at a time, without those of `uncounted`."""

    def __init__(self, uncounted=()):
        super().__init__()
        self.live, self.peak = {}, 0
        self.uncounted = {tensor.untyped_storage()._cdata for tensor in uncounted}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.uncounted:
                    self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: (place, size) for key, (place, size) in self.live.items() if not place.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result
