"""``skill-kd backends``."""

from __future__ import annotations

import click

from skill_kd.cli.options import JSON
from skill_kd.console import Verb, print_json, print_table, say


@click.command(cls=Verb)
@click.option("--verbose", is_flag=True, help="Show the traceback of each plugin that could not be loaded.")
@JSON
def backends(verbose: bool, as_json: bool) -> None:
    """List the installed backends and the packages that each lacks.

    \b
    Example:
      skill-kd backends
    """
    from skill_kd import plugins

    rows = [(name, each.version, plugins.missing(each)) for name, each in plugins.backends().items()]
    broken = plugins.broken()
    for name, report in broken.items():
        say(f"warning: plugin '{name}' could not be loaded: {report if verbose else report.strip().splitlines()[-1]}")
    if as_json:
        table = [{"name": name, "version": version, "missing": missing} for name, version, missing in rows]
        print_json({"backends": table, "broken": broken})
    else:
        print_table(("name", "version", "missing"), [(name, version, ", ".join(lack)) for name, version, lack in rows])
