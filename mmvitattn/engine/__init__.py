"""What the tools share: command-line options, checks before any work, and hooks."""
