"""What `cwm rm` and `cwm undo` ask for. Control thread, which awaits and never blocks."""
