"""``skill-kd plan``."""

from __future__ import annotations

from pathlib import Path

import click

from skill_kd.cli.options import BACKEND, JSON, SPEC, load
from skill_kd.console import Verb, print_json, show


@click.command(cls=Verb)
@SPEC
@click.option("--device", metavar="NAME", help="Device to plan for, for example A100-80 or cpu.")
@click.option("--price-per-hour", type=float, metavar="PRICE", help="Price of one device per hour, in any currency.")
@click.option("--rows", type=int, metavar="N", help="Number of training rows, if the data is not a local file.")
@BACKEND
@JSON
def plan(
    spec: Path, device: str | None, price_per_hour: float | None, rows: int | None, backend: str | None, as_json: bool
) -> None:
    """Estimate memory, time and cost before anything is downloaded.

    \b
    Example:
      skill-kd plan examples/demo.yaml --device cpu
      skill-kd plan examples/one-gpu-lora.yaml --device A100-80 --price-per-hour 1.8
    """
    from skill_kd import plan as planner

    result = planner.plan(load(spec, backend=backend), device=device, price_per_hour=price_per_hour, rows=rows)
    if as_json:
        print_json(result.to_json())
    else:
        show(result.table())
