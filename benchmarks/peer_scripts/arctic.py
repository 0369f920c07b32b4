"""ArcticDB on LMDB, in a process that stays: writes the bars of a Parquet file, then reads what each line names.

`python arctic.py FILE FOLDER`, in an environment that has ArcticDB and not this package. A line of its input is a JSON
list of symbols; it answers with the rows and the processor seconds of reading them into one frame of pandas.
"""

from __future__ import annotations

import json
import sys
import time

import pandas as pd
from arcticdb import Arctic


def main(file: str, folder: str) -> None:
    """Store, say that it is done, and answer until the input ends."""
    library = Arctic(f"lmdb://{folder}?map_size=8GB").create_library("bars")
    whole = pd.read_parquet(file)
    whole["trades"] = whole["trades"].astype("int64")  # it has no nullable types
    for symbol, bars in whole.groupby("symbol", observed=True):
        library.write(str(symbol), bars.drop(columns="symbol"))
    del whole
    print(json.dumps({"stored": True}), flush=True)
    for line in sys.stdin:
        symbols = json.loads(line)
        began = time.process_time()
        if len(symbols) == 1:
            frame = library.read(symbols[0]).data
        else:
            frames = [found.data for found in library.read_batch(symbols)]
            frame = pd.concat(frames)
            lengths = [len(each) for each in frames]
            codes = pd.Index(range(len(symbols))).repeat(lengths)
            frame.insert(0, "symbol", pd.Categorical.from_codes(codes, symbols))
        print(json.dumps({"rows": len(frame), "seconds": time.process_time() - began}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
