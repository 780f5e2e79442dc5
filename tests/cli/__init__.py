"""The program as a user calls it: another process, its output, its exit code."""
