"""The verbs of `tandem`.

Not empty, for one line that must run before torch is imported: OpenMP threads that wait by spinning starve each other
as soon as a loader's worker or another job needs a core (measured on 2 busy cores: 30 s a step instead of 0.9 s).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
