"""Commands that talk with a running engine for long, or start and end it. One thread, an event loop for each call."""
