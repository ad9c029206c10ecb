"""The commands of `python -m pipeline.inspect_shards`, one a file, and what they share.

A command is a module with two functions: `arguments(parser)` declares its flags, and `run(args)` does the work and
returns the exit code. The first line of the docstring of `run` is the help. A command imports Arrow where it runs, so
that the command line starts at once.
"""
