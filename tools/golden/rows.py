"""The same rows as parquet and as JSON lines, for the tests of the parquet feature.

    python tools/golden/rows.py        (pyarrow; rewrites tests/fixtures/data/rows.*)
"""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

FOLDER = Path(__file__).resolve().parents[2] / "tests/fixtures/data"
ROWS = [
    {"id": 1, "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "\u221a16 = 4"}], "question": None, "solution": None},
    {"id": 2, "messages": None, "question": "Caf\u00e9 \U0001f914?", "solution": "Wait, \\boxed{2}"},
    {"id": 3, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}, {"role": "assistant", "content": "A"},
                           {"role": "user", "content": "B?"}, {"role": "assistant", "content": "C"}], "question": "not this", "solution": "nor this"},
    {"id": None, "messages": None, "question": "Q", "solution": "A" * 300},
]


def main():
    table = pyarrow.Table.from_pylist(ROWS)
    for compression in ("snappy", "zstd"):
        pyarrow.parquet.write_table(table, FOLDER / f"rows.{compression}.parquet", compression=compression)
    (FOLDER / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


if __name__ == "__main__":
    main()
