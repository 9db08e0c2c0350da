"""``skill-kd prove``."""

from __future__ import annotations

import click

from skill_kd.cli.options import JSON
from skill_kd.console import Verb, print_json, show
from skill_kd.errors import ExitCode


@click.command(cls=Verb)
@click.argument("loss", metavar="MODULE:FUNCTION|FILE.py:FUNCTION")
@click.option(
    "--teacher-mix",
    "mixes",
    type=click.FloatRange(0, 1, max_open=True),
    multiple=True,
    default=(0.0, 0.2, 0.5),
    show_default=True,
    help="α, the probability that the teacher samples a token; can be repeated.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=4, show_default=True, help="Number of pairs of random policies."
)
@JSON
def prove(loss: str, mixes: tuple[float, ...], seeds: int, as_json: bool) -> ExitCode:
    """Compare the gradient of your own loss with the exact gradient.

    The expected gradient of the loss over all responses of a toy model is compared with the gradient of
    KL(student ‖ teacher). So a bias is visible without noise. Swapped directions are reported.

    The function takes (student_logp_BTV, teacher_logp_BTV, ids_BT, mask_BT, behaviour_logp_BT or None). It returns
    loss_BT, or its sum over T or over all. B is 1 response, T tokens, V the vocabulary. The command imports and runs
    your code. Exit code 0 means exact, up to a constant step size; 3 means not exact.

    \b
    Example:
      skill-kd prove skill_kd.kd.losses.estimators:minillm_exact
      skill-kd prove my_losses.py:reverse_kl_loss --teacher-mix 0
    """
    from skill_kd import prove as proof

    verdict = proof.prove(loss, seeds=seeds, teacher_mixes=mixes)
    if as_json:
        print_json(verdict.to_json())
    else:
        show(verdict.table())
    return ExitCode.OK if verdict.exact else ExitCode.NO_GO
