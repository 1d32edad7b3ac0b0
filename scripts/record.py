"""Cut the recorded store that the tests replay out of a store that ``foretell build`` wrote.

    python scripts/record.py measurements.sqlite tests/data/recorded.sqlite

It keeps 150 generated benchmarks and the 24 real networks with the fewest nodes, with their measurements, without the
raw runs.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from foretell.store import Store


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [m for m in Store(source).measurements() if m.verdict == "ok"]
    generated = [m.graph for m in rows if m.source == "generated"][:150]
    real = sorted((len(m.kernels), m.graph) for m in rows if m.source == "zoo")[:24]
    keep = [*generated, *(g for _, g in real)]
    target.unlink(missing_ok=True)
    Store(target).close()
    db = sqlite3.connect(target)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("ATTACH ? AS old", (str(source),))
    marks = ",".join("?" * len(keep))
    for table in ("graphs", "measurements"):
        key = "hash" if table == "graphs" else "graph"
        db.execute(f"INSERT INTO {table} SELECT * FROM old.{table} WHERE {key} IN ({marks})", keep)
    db.commit()
    db.execute("VACUUM")
    db.close()


if __name__ == "__main__":
    main()
