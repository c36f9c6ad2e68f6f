"""The verbs of `tandem`.

Not empty, for two settings that must stand before torch and numpy are imported. Threads of both wait by spinning.

- OpenMP (torch), 300,000 turns by default: as soon as a loader's worker or another job needs a core they starve each
  other (seen: some 30 s a step on two busy cores). Not spinning at all costs twice the step on an idle machine. 10,000
  turns cost nothing there and stay bearable on a busy one.
- OpenBLAS (numpy): what it multiplies here are points by 4 x 4 matrices, and preparing a set is spread over processes;
  a second thread only takes a core from the next process. One thread prepares KITTI with half the processor time.

docs/lab_book.md has the figures.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
