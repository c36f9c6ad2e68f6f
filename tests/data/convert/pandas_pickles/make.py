"""Writes tables.json as pickles with the pandas that runs this: `python make.py`, once with each version.

Needs nothing but pandas and Python 3.7. The files beside it were written by pandas 0.25.3, 1.0.5, 1.2.5, 1.5.3, 2.2.3
and 3.0.0.
"""

import json
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent

if __name__ == "__main__":
    for name, columns in json.loads((HERE / "tables.json").read_text()).items():
        frame = pd.DataFrame(columns)
        frame.index.name = "index"
        frame.to_pickle(str(HERE / f"{name}-{pd.__version__}.pkl.gz"))
