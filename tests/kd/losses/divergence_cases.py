"""The divergences that tests go through, with their parameters; a new one of the table is in ``BOUND`` by itself."""

from __future__ import annotations

from functools import partial

from skill_kd.kd.losses.divergences import DIVERGENCES, Divergence

Case = tuple[str, dict[str, float]]

CASES: list[Case] = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    *(("jsd", {"beta": beta}) for beta in (0.05, 0.5, 0.9)),
    *(("skew_kl", {"skew": skew}) for skew in (0.01, 0.1, 0.7)),
    *(("skew_reverse_kl", {"skew": skew}) for skew in (0.01, 0.1, 0.7)),
    *(("adaptive_kl", {"head_mass": mass}) for mass in (0.2, 0.5, 0.95)),
    *(("entropy_aware", {"entropy_threshold": threshold}) for threshold in (0.1, 0.8, 5.0)),
    ("total_variation", {}),
]
"""Those that are compared with the references of reference.py."""
# A gate that is always open leaves the sum of both directions.
SYMMETRIC: list[Case] = [("total_variation", {}), ("jsd", {"beta": 0.5}), ("entropy_aware", {"entropy_threshold": 0.1})]
"""Those whose value stays the same if the two distributions are swapped."""
PARAMETERS: dict[str, dict[str, float]] = {
    "jsd": {"beta": 0.3},
    "skew_kl": {"skew": 0.2},
    "skew_reverse_kl": {"skew": 0.2},
    "adaptive_kl": {"head_mass": 0.4},
    "entropy_aware": {"entropy_threshold": 1.5},
}
"""One choice for each kind that has any; none is the spec's default, and none makes a kind another one."""
SPECS: list[dict[str, object]] = [{"kind": kind, **PARAMETERS.get(kind, {})} for kind in DIVERGENCES]
BOUND: dict[str, Divergence] = {kind: partial(each, **PARAMETERS.get(kind, {})) for kind, each in DIVERGENCES.items()}
