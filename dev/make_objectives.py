"""Generate the measured comparison of objectives in references/objectives.md.

python dev/make_objectives.py [--check]
"""

from __future__ import annotations

from functools import partial

import generated
from make_estimators import table

OBJECTIVES = ("forward_kl", "reverse_kl", "student_entropy", "distinct_2", "repetition")

if __name__ == "__main__":
    raise SystemExit(generated.main("references/objectives.md", "objectives", partial(table, "objectives", OBJECTIVES)))
