"""The launcher script: ``python -I -S -B launch.py SETTINGS``. It imports its own package and nothing installed."""

from __future__ import annotations

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jail import supervisor

if __name__ == "__main__":
    supervisor.main(sys.argv[1])
