"""A store that is killed and cut off from power at random instants, over and over, and judged after each time.

python -m tests.torture --help     # the command
campaign.py    forks a child for each loop, ends it, judges what the next one finds
child.py       an engine in miniature over the store: looks at everything, then works at random (mix.py)
ledger.py      what was asked and acknowledged, and so what may stand in the store
judge.py       what a start has found, held against the ledger: lost, corrupt, phantom, leaked
plan.py        when a child is killed
faults.py      bugs to plant, so that the harness itself is tried
real.py        the same with a real vLLM server
soak/          a real vLLM server whose KV cache is too small, for up to an hour, every answer compared
"""
