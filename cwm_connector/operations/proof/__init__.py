"""Proofs: one greedy token over a window's tokens, taken at the freeze and repeated over the loaded window.

Control thread. The first tokens of our own requests arrive on the engine thread.
"""
