"""The peak memory of a process: it takes in what was in use, and does not fall when that is freed."""

import subprocess
import sys

PROGRAM = """
from offramp.measure.memory import peak_mib
before = peak_mib()
held = bytearray(b"1" * 2**26)
peak = peak_mib()
del held
print(before, peak, peak_mib())
"""


def test_the_peak_takes_in_what_was_in_use_and_stays() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, peak, after = map(float, ran.stdout.split())
    assert 1 < before < 1000  # of its own, though this process is larger
    assert 60 < peak - before < 200
    assert after >= peak
