"""The pool: all these processes on one machine, found, asked and ended together."""
