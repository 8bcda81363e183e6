"""Windows of a real vLLM, each compared bit for bit with the session that was never interrupted.

python -m tests.certify --help     # the command
cases.py       which windows: lengths, branch points, when each is thawed, with or without load beside it
compare.py     two answers side by side: tokens, and how far their logprobs are apart
certifier.py   makes the windows, ends the engine with kill -9, thaws and compares
noise.py       how far equal requests are apart on this platform without any window
report.py      the figures, and whether they certify anything
"""
