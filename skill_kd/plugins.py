"""Discovery of backends: ours and those of installed packages, through one hook.

A package declares a plugin with an entry point in the group ``skill_kd``. A broken plugin is skipped and reported; it
never stops the others.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import traceback
from importlib import metadata

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from skill_kd import __version__, hookspecs
from skill_kd.backend import Backend
from skill_kd.backends import transformers
from skill_kd.errors import MissingRequirementError

GROUP = "skill_kd"
"""Entry-point group, and the name of the pluggy project."""

FIRST_PARTY = ("trl", "unsloth")
"""Backends that we publish as separate packages, ``skill-kd-NAME``."""


class _Registry:
    """The discovered backends, the plugin that registered each, and the plugins that could not be loaded."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.backends: dict[str, Backend] = {}
        self.broken: dict[str, str] = {}
        self._origin: dict[str, str] = {}

    def load(self, name: str, plugin: object) -> None:
        """Add all backends of one plugin, or none if any of them is invalid."""
        try:
            if isinstance(plugin, metadata.EntryPoint):
                _check_version(plugin)
                plugin = plugin.load()
            added = self._ask(name, plugin)
        except (Exception, SystemExit):  # importing a plugin may raise anything, or exit
            self.broken[name] = traceback.format_exc()
            return
        self.backends.update(added)
        self._origin.update(dict.fromkeys(added, name))

    def _ask(self, name: str, plugin: object) -> dict[str, Backend]:
        """Call the hook of this plugin only."""
        self.manager.register(plugin, name=name)
        try:
            self.manager.check_pending()
            others = [other for other in self.manager.get_plugins() if other is not plugin]
            classes: list[type[Backend]] = []
            self.manager.subset_hook_caller("register_backends", others)(register=classes.append)
            return self._created(name, classes)
        except BaseException:
            self.manager.unregister(plugin)  # else check_pending would blame the next plugin
            raise

    def _created(self, name: str, classes: list[type[Backend]]) -> dict[str, Backend]:
        created: dict[str, Backend] = {}
        for backend_class in classes:
            if not (inspect.isclass(backend_class) and issubclass(backend_class, Backend)):
                raise TypeError(f"plugin '{name}' registers {backend_class!r}, which is not a subclass of Backend")
            backend = backend_class()
            origin = name if backend.name in created else self._origin.get(backend.name)
            if origin is not None:
                raise ValueError(f"backend '{backend.name}' of plugin '{name}' is already registered by '{origin}'")
            created[backend.name] = backend
        return created


def _check_version(plugin: metadata.EntryPoint) -> None:
    """Refuse a plugin that requires another version of skill-kd; an installation may bypass pip's check."""
    for each in map(Requirement, (plugin.dist.requires if plugin.dist else None) or ()):
        if canonicalize_name(each.name) == "skill-kd" and not each.specifier.contains(__version__, prereleases=True):
            raise MissingRequirementError(f"requires {each}, but this is skill-kd {__version__}; install matching ones")


@functools.cache
def _registry() -> _Registry:
    registry = _Registry()
    registry.load("skill-kd", transformers)
    for entry_point in metadata.entry_points(group=GROUP):
        distribution = entry_point.dist.name if entry_point.dist else "?"
        registry.load(f"{distribution}:{entry_point.name}", entry_point)
    return registry


def forget() -> None:
    """Discover plugins again at the next call, for tests that install plugins."""
    _registry.cache_clear()


def backends() -> dict[str, Backend]:
    """Return every usable backend by name, the built-in one first."""
    return dict(_registry().backends)


def broken() -> dict[str, str]:
    """Return the traceback of each broken plugin, by ``distribution:entry point``."""
    return dict(_registry().broken)


def get_backend(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises:
        MissingRequirementError: no working plugin provides it; the message says what to install.
    """
    known = backends()
    if name in known:
        return known[name]
    raise MissingRequirementError(f"unknown backend {name!r}; " + _remedy(name, known))


def _remedy(name: str, known: dict[str, Backend]) -> str:
    failed = [plugin for plugin in broken() if plugin.endswith(f":{name}")]  # an entry point has its backend's name
    if failed:
        reason = broken()[failed[0]].strip().splitlines()[-1]
        return f"plugin '{failed[0]}' is installed but broken: {reason}; see 'skill-kd backends'"
    if name in FIRST_PARTY:
        return f"install it from this repository: pip install ./plugins/skill-kd-{name}; see references/backends.md"
    near = difflib.get_close_matches(name, {*known, *FIRST_PARTY}, n=1)
    if near:
        # Suggest no install command for a probable typo: someone else may own that package.
        install = "" if near[0] in known else f" (pip install ./plugins/skill-kd-{near[0]}, from this repository)"
        return f"did you mean '{near[0]}'?{install}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", name):
        return f"installed: {', '.join(known)}"
    return f"installed: {', '.join(known)}; if you trust a package that provides it: pip install skill-kd-{name}"


def missing(backend: Backend) -> list[str]:
    """Return the backend's requirements that are not installed, or are installed outside their version range.

    A pin (``==``) names the tested version, but any version meets it: see ``untested``. Requirements are returned as
    the backend wrote them, ready for ``pip install``. Nothing is imported.
    """
    return [each for each in backend.requirements if not _is_met(Requirement(each))]


def untested(backend: Backend) -> list[str]:
    """Return one line for each package with another installed version than the tested one, naming both."""
    pins = [each for each in map(Requirement, backend.requirements) if _is_pin(each) and _is_wanted(each)]
    here = [(pin, version) for pin in pins if (version := _version(pin)) is not None]
    return [f"{pin.name} {version} (tested: {pin.specifier})" for pin, version in here if version not in pin.specifier]


def _is_met(requirement: Requirement) -> bool:
    if not _is_wanted(requirement):
        return True
    version = _version(requirement)
    return version is not None and (_is_pin(requirement) or requirement.specifier.contains(version, prereleases=True))


def _is_wanted(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _is_pin(requirement: Requirement) -> bool:
    return any(each.operator == "==" for each in requirement.specifier)


def _version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None
