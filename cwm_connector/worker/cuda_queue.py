"""One direction of the bus to a CUDA device: batches of copies on a stream beside the model's.

`mark` and `hold` on the model's thread, `copy` on a transfer thread. Neither waits for the device, unless a call fails.
"""

import torch

from cwm_connector import compat
from cwm_connector.worker.fence import Fence


class CudaQueue:
    """Copies on one stream run in the order in which they were queued."""

    def __init__(self, device: torch.device, *, from_host: bool) -> None:
        """`from_host`: the copies go to the device. Nothing writes their sources meanwhile."""
        self._device = device
        self._from_host = from_host
        self._stream = torch.cuda.Stream(device)
        self._behind: Fence | None = None
        """The fence that the stream has been made to wait for last. All that is queued now is behind it."""

    def mark(self) -> Fence:
        """Return a fence at this point of the model's stream."""
        here = torch.cuda.Event()
        here.record(torch.cuda.current_stream(self._device))
        fence: Fence = here
        return fence

    def hold(self, until: Fence) -> None:
        """Let the model's stream wait for a fence. The thread does not wait."""
        if isinstance(until, torch.cuda.Event):
            torch.cuda.current_stream(self._device).wait_event(until)

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor, after: Fence) -> Fence:
        """Queue copies between addresses, once `after` has passed. Return the fence behind them.

        A call that raises has waited for all copies before it, so the caller may give their memory to others.
        """
        try:
            with torch.cuda.stream(self._stream):
                if isinstance(after, torch.cuda.Event) and after is not self._behind:
                    self._stream.wait_event(after)
                    self._behind = after
                compat.queue_copies(sources, targets, sizes, from_host=self._from_host)
                done = torch.cuda.Event(blocking=True)  # a thread that waits for it uses no core
                done.record(self._stream)
                fence: Fence = done
                return fence
        except BaseException:
            self._stream.synchronize()
            raise
