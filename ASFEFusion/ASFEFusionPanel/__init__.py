"""What the module's panel is made of: words, choices, views, the run in a child process, sample data."""
