"""`python -m demo`: a real conversation is frozen, its engine killed with -9, thawed in a new one, and branched.

conversation.py holds the exact tokens, story.py tells what happens, report.py judges and prints it, chart.py draws it.
"""
