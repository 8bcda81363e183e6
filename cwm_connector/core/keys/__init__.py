"""What makes up the keys of chunks beside token ids. Pure values for any thread."""
