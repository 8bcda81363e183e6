"""A catalog that several engines share: a log of changes in Redis, and a SQLite replica in each engine."""
