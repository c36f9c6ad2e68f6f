"""What `tandem VERB --help` costs: processor time of the whole process, seconds, least of some calls.

python -m benchmarks.help [--calls 5]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from benchmarks.common import markdown
from launchers.cli import VERBS


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--calls", type=int, default=5, metavar="N")
    calls = p.parse_args().calls
    rows = [(verb, f"{min(_seconds(verb) for _ in range(calls)):.2f}") for verb in VERBS]
    print(markdown(("verb", "s"), rows))


def _seconds(verb: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "launchers.cli", verb, "--help"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
