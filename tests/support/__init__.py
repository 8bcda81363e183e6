"""Drives a real engine from outside: used by the engine tests, by the demo and by the benchmark."""
