"""Float32 or better whatever the dtype of the model around it."""

from __future__ import annotations

from typing import Any

from torch import float32, nn


class WideBuffers(nn.Module):
    """Its buffers move with the model, but never below float32: ``model.half()`` leaves them as they are."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype.itemsize < float32.itemsize:
                self._buffers[name] = buffer.to(moved.device, float32)
        return self
