#!/usr/bin/env python3
"""Takes the command line of MLPerf's HeteroMIG harness and runs it with hetero-mig: docs/predecessor.md.

Runs in any Python 3 there is; hetero-mig has its own, which is set up first where needed.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(ROOT / ".venv" / "bin" / "hetero-mig")

if __name__ == "__main__":
    installed = subprocess.call([str(ROOT / "scripts" / "install")])
    if installed != 0:
        sys.exit(installed)

    os.execv(PROGRAM, [PROGRAM, "predecessor", *sys.argv[1:]])
