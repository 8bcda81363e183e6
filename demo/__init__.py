"""`python -m demo`: freeze a real conversation, kill its engine with -9, thaw it in a new one, and branch it.

conversation.py keeps the exact tokens. story.py runs the steps and prints them. report.py checks the outcome and prints
the table. chart.py draws it. next_steps.py says what to type next.
"""
