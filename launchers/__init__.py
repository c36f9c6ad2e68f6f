"""The verbs of `tandem`.

Not empty, for one line that must run before torch is imported. OpenMP threads wait by spinning, 300,000 turns by
default: as soon as a loader's worker or another job needs a core they starve each other (seen: some 30 s a step on two
busy cores). Not spinning at all costs twice the step on an idle machine. 10,000 turns cost nothing there
and stay bearable on a busy one (docs/lab_book.md has the figures).
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
