"""Count the lines of two files that are equal; exit with 1 below 99 %.

python examples/numbers/exact_match.py examples/numbers/data/test.out examples/numbers/data/test.de
"""

import sys
from pathlib import Path

from tokenizer.lines import read_lines

GOAL = 0.99


def main() -> int:
    """Compare the two files named on the command line."""
    outputs, references = (list(read_lines(Path(name))) for name in sys.argv[1:3])
    wrong = [(o, r) for o, r in zip(outputs, references, strict=True) if o != r]
    share = 1 - len(wrong) / len(references)
    print(f"exact match: {share:.1%} ({len(references) - len(wrong)} of {len(references)})")
    for output, reference in wrong[:5]:
        print(f"  wanted  {reference}\n  got     {output}")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
