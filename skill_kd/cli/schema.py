"""``skill-kd schema``."""

from __future__ import annotations

import click

from skill_kd.console import Verb, print_json


@click.command(cls=Verb)
def schema() -> None:
    """Print the JSON Schema of a spec, for editors and agents.

    \b
    Example:
      skill-kd schema > spec.schema.json
    """
    from skill_kd.spec import Spec

    dialect = "https://json-schema.org/draft/2020-12/schema"
    print_json({"$schema": dialect, **Spec.model_json_schema(), "title": "skill-kd spec"})
