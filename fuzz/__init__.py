"""What happens to arguments that nobody thought of? `python -m fuzz` throws them, and says what it found."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "tests" / "hostile", ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
