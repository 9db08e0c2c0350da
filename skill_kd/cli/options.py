"""An argument, four options and the loading of a spec, shared by several verbs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from skill_kd.spec import Spec

SPEC = click.argument("spec", type=click.Path(path_type=Path))
BACKEND = click.option("--backend", metavar="NAME", help="Use this backend instead of the spec's.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
TRUST_CODE = click.option(
    "--trust-remote-code", is_flag=True, help="Allow the code of models for which a run folder's spec asks for it."
)
TRUST_RUN = click.option(
    "--trust-run", is_flag=True, help="Treat a foreign run folder as yours: use its server, data, script and samples."
)


def load(path: Path, **overrides: str | None) -> Spec:
    """Read a spec, and replace its values by those of ``overrides`` that are not None.

    Raises:
        SpecError: the spec cannot be read, or is invalid.
    """
    from skill_kd.spec.file import load_spec

    return load_spec(path, **{key: value for key, value in overrides.items() if value is not None})
