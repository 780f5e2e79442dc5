"""Imported by the forkserver before all else, and by nothing else: importing it guards that process."""

from scheduler import orphans

orphans.guard_forkserver()
