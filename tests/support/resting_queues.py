"""Lets vLLM's processes rest while they wait for each other. A warm server imports it (tests/support/warm.py).

On the CPU build a server's core and its worker are two processes with queues between them. A process that waits at a
queue spins for a second before it sleeps, which takes half of two cores from the one that computes. vLLM has no option
for it.
"""

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

_SPINNING_S = 1
"""vLLM's default, which stands in the constructor alone."""

if SpinCondition.__init__.__defaults__ != (_SPINNING_S,):
    raise RuntimeError("vLLM's SpinCondition waits in another way: see tests/support/resting_queues.py")
SpinCondition.__init__.__defaults__ = (0,)
