"""`cwm doctor`: what is wrong with an installation, and what to type next. Each module looks at one part of it."""
