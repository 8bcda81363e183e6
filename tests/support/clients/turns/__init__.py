"""Single turns with client libraries. Each runs in the environment that has its library and imports nothing of ours."""
