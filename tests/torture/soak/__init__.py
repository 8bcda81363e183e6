"""A real vLLM whose KV cache is too small, with everything that may happen to it at random, for minutes or an hour.

conversations.py  what is said: a few recitations that branch, drawn from a seed
oracle.py         what an engine without windows answers to each, the noise of the platform, and the comparison
clients.py        clients that ask, abort, freeze, thaw, clone and delete at random
weather.py        what befalls the engine meanwhile: Redis and disk faults, damaged chunks, resets and sleep
ending.py         the look at the end: is anything held, lost, leaked or under way?
inside.py         the connector that the engine loads: it says what it holds, and can have a bug planted
soak.py           one run of all this
"""
