"""The Redis tier, for chunks that several engines may share. Transfer threads; may block for its time-out."""
