"""Tell operators what the engine does: one line of the log for each freeze and thaw, spans, and gauges.

Nothing here holds text of a conversation, token ids or a salt. Control thread. It may import what `operations` imports.
"""
