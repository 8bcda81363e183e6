"""What clients ask for, carried out: freeze, thaw, delete, verify, export, and the upkeep of the tiers.

Control thread. Blocking work goes to other threads. Imports everything but `service` and `connector`.
"""
