"""Imported by the forkserver before all else, and by nothing else: importing it guards that process."""

import gc

from scheduler import orphans

gc.disable()  # until scheduler.preloaded: what is imported stays
orphans.guard_forkserver()
