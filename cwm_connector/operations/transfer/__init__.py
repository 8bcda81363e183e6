"""Export and import: a window as one file that can be shown to be whole.

Control thread. The file is read and written on a thread of the transfer's own.
"""
