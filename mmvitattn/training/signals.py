"""Signals that ask a training to stop: noted when they arrive, agreed on between iterations."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C; a second Ctrl-C ends the process at once.

    Attributes:
        number: of the last signal that this process received; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}
        # A group of its own: reading a result of NCCL would make the CPU wait for the GPU.
        distributed = get_world_size() > 1
        self._group: Any = torch.distributed.new_group(backend='gloo') if distributed else None
        if threading.current_thread() is threading.main_thread():  # others may set no handlers
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.number = number

    def agreed(self) -> int:
        """The number of a signal that any process of the run has received; 0 for none.

        All processes have to call this, and get the same answer.
        """
        if self._group is None:
            return self.number
        number = torch.tensor(self.number)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self._group)
        return int(number)

    def wait_for_all(self) -> None:
        """Returns when all processes have called this."""
        if self._group is not None:
            torch.distributed.barrier(self._group)

    def restore(self) -> None:
        """Restores the former handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
