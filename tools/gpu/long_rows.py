#!/usr/bin/env python3
"""Writes rows that the tokenizer of configs/tiny makes about 16,000 tokens of: what a step of full length is measured with.

Example: tools/gpu/long_rows.py /tmp/long.jsonl
"""

import json
import random
import sys

ROWS, SENTENCES = 16, 2250

if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
    sys.exit(__doc__)
draw = random.Random(7)
with open(sys.argv[1], "w", encoding="utf-8") as out:
    for row in range(ROWS):
        words = (f"{draw.randrange(10)} + {draw.randrange(10)}." for _ in range(SENTENCES))
        out.write(json.dumps({"id": str(row), "question": f"{row}?", "solution": " ".join(words)}) + "\n")
