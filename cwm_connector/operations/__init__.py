"""The operations that clients ask for: freeze, thaw, delete, verify, export, and the maintenance of the tiers.

Control thread. Blocking work goes to other threads. Imports everything but `service` and `connector`.
"""
