"""The catalog in one SQLite file: the embedded default, and each engine's replica of a shared one."""
