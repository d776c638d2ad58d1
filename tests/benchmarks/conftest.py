"""The scripts of benchmarks and benchmarks/serving as modules."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SERVING = BENCHMARKS / "serving"
sys.path += [str(BENCHMARKS), str(SERVING), str(SERVING / "peers")]
