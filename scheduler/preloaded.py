"""Imported by the forkserver after all else: what is imported by now is not to be collected in any worker.

A collection would touch every object and so copy, in each worker, the pages it shares with the others.
"""

import atexit
import gc

gc.collect()
gc.freeze()
gc.enable()
atexit.register(gc.unfreeze)  # some libraries complain at exit about what was never collected
