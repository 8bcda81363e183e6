"""What a start looks at and repairs in CWM_HOME. It begins before the socket opens and ends while the engine serves.

Control thread. It may import what `operations` imports.
"""
