"""The scripts of benchmarks/serving as modules."""

import sys
from pathlib import Path

SERVING = Path(__file__).parents[2] / "benchmarks" / "serving"
sys.path += [str(SERVING), str(SERVING / "peers")]
