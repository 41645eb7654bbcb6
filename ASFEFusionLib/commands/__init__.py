"""The commands: each file has `add_arguments(parser)` and `run(options)`."""
