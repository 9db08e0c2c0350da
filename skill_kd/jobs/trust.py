"""Trust in run folders. If one may come from somebody else, what could do harm needs the consent of the user.

The user's own files have a seal, an HMAC with a key that only this user has. It does not cover the place of the
folder, which can be moved and copied.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.files import making, open_unlinked, read_input, write_atomically
from skill_kd.jobs.folder import SCRIPT
from skill_kd.jobs.manifest import NAME, RESOLVED, Manifest
from skill_kd.spec import Spec

TRUST = "if you know where it comes from, add --trust-run"
_FOREIGN = f"may come from somebody else: its {NAME} does not have your seal for its {RESOLVED}"
_KEY_BYTES = 32


# --- seals ------------------------------------------------------------------------------------------------------------


def seal(*parts: str) -> str | None:
    """Return the HMAC-SHA256 of ``parts`` with the user's key, in hexadecimal, or None if there can be no key."""
    try:
        key = _key()
    except OSError:
        return None
    return hmac.digest(key, json.dumps(parts).encode(), "sha256").hex()


def fits(sealed: object, *parts: str) -> bool:
    """Return True if ``sealed`` is the user's own seal of ``parts``."""
    expected = seal(*parts)
    return (
        expected is not None and isinstance(sealed, str) and sealed.isascii() and hmac.compare_digest(sealed, expected)
    )


def missing_key() -> str | None:
    """Return a note for the user if there can be no key, so that nothing is sealed; otherwise None."""
    try:
        _key()
    except OSError as error:
        return (
            f"note: the key in '{error.filename or _key_file()}' cannot be used: {error.strerror or error}. Later "
            "commands will treat these files as somebody else's, and may ask for --trust-run"
        )
    return None


def _key_file() -> Path:
    """Return the place of the key, in the user's state folder. A relative XDG_STATE_HOME does not count."""
    base = os.environ.get("XDG_STATE_HOME", "")
    state = base if os.path.isabs(base) else os.path.expanduser("~/.local/state")
    return Path(state) / "skill-kd" / "key"


def _key() -> bytes:
    """Return the user's key. The first use makes it; if several processes start together, all get the same key."""
    path = _key_file()
    if not path.is_absolute():
        raise OSError(errno.ENOENT, "there is no home folder", str(path))
    if not os.path.lexists(path):
        draft = path.with_name(f".key.{secrets.token_hex(8)}")
        with making(path.parent):
            try:
                write_atomically(draft, secrets.token_bytes(_KEY_BYTES), private=True, sync=True)
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
    with open_unlinked(path, "rb") as file:
        key: bytes = file.read(_KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise OSError(errno.EINVAL, "it is damaged; delete it", str(path))
    return key


# --- runs -------------------------------------------------------------------------------------------------------------


def is_run_folder(folder: Path) -> bool:
    """Return True if ``folder`` has a manifest."""
    return os.path.lexists(folder / NAME)


def sealed(manifest: Manifest, spec: str) -> Manifest:
    """Return the manifest with this user's seal. ``spec`` is the text of ``spec.yaml``."""
    return replace(manifest, seal=seal(*_parts(manifest, spec)))


def is_own(folder: Path, spec: str | None = None) -> bool:
    """Return True if this user made a run folder, and nobody changed its spec since.

    ``spec`` is a text of ``spec.yaml`` that also counts: ``--resume`` may have sealed it before it was written.
    """
    try:
        manifest = Manifest.read(folder)
        texts = [read_spec(folder), *([] if spec is None else [spec])]
    except UsageError:
        return False
    return any(fits(manifest.seal, *_parts(manifest, text)) for text in texts)


def read_spec(folder: Path) -> str:
    """Return the text of ``spec.yaml`` of a run folder. Raises UsageError if it cannot be read."""
    path = folder / RESOLVED
    try:
        return read_input(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read '{path}': {getattr(error, 'strerror', 'it is not UTF-8 text')}") from error


def _parts(manifest: Manifest, spec: str) -> tuple[str, ...]:
    """Return what a seal covers. The spec's relative paths start at ``cwd``."""
    return ("run", spec, manifest.spec_hash, manifest.script_hash, str(manifest.edited), manifest.cwd)


def may_be_foreign(path: Path) -> bool:
    """Return True for a spec or a script in a run folder that may come from somebody else."""
    return is_run_folder(path.parent) and not (path.name in {RESOLVED, SCRIPT} and is_own(path.parent))


# --- what somebody else's run must not do -----------------------------------------------------------------------------


def refuse_code(spec: Spec, path: Path, sections: Sequence[str] = ("teacher", "student")) -> None:
    """Refuse a spec that asks to run the code of a model, because nobody said on the command line that it may.

    Args:
        path: the spec's file, for the message.
        sections: the parts of the spec whose models may be loaded.

    Raises:
        UsageError: the message names the model, its revision and the option that allows the code.
    """
    for section in sections:
        source = getattr(spec, section)
        if source.trust_remote_code:
            named = " and ".join(f"'{model}' at revision {revision}" for model, revision in source.revisions)
            raise UsageError(
                f"{section}.trust_remote_code: '{path}' asks to run the Python code of {named}, and a run folder may "
                "come from somebody else; if you have read that code and trust it, add --trust-remote-code"
            )


def refuse_server(spec: Spec, path: Path, instead: str = "") -> None:
    """Refuse the spec or script ``path`` of a run that would send prompts, or a key, to a server.

    ``instead`` says what the user can do without the server.

    Raises:
        UsageError: the message names the server and the variable of the key.
    """
    served = spec.teacher.served
    asked = {"teacher.served.url": served and served.url, "rollout.vllm_url": spec.rollout.vllm_url}
    for field, url in asked.items():
        if url is not None:
            named = served.api_key_env if served and url == served.url else None
            key = f", with the key in {named} (teacher.served.api_key_env)" if named else ""
            raise UsageError(
                f"{field}: '{path}' asks to send prompts to '{url}'{key}, and this run folder {_FOREIGN}; "
                f"{f'{instead}, or, ' if instead else ''}{TRUST}"
            )


def refuse_outside(folder: Path, field: str, value: str, found: Path | None, instead: str) -> None:
    """Refuse data that a run's spec names, unless it is a file in the run folder: its rows may be private.

    Args:
        folder: the run folder.
        field: the key of the spec.
        value: its value.
        found: the file of that name; None for a data set of the hub.
        instead: what the user can do without the data, for the message.

    Raises:
        UsageError: the message names the field, the value and the option.
    """
    if found is None or not is_inside(folder, found):
        raise UsageError(
            f"{field}: '{value}' is outside of the run folder '{folder}', which {_FOREIGN}; {instead}, or, {TRUST}"
        )


def is_inside(folder: Path, path: Path) -> bool:
    """Return True if ``path`` is a file in ``folder``, also after links are followed."""
    return path.is_file() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
