"""The disk tier: one file a chunk, written, synced and renamed. Transfer threads; may block."""
