#!/usr/bin/env python3
# ruff: noqa: T201, UP036, N818 -- it prints, it must start on an old Python to refuse it, and Stop is not an error
"""Launcher for agents: ``python3 SKILL_FOLDER/scripts/kd.py VERB …``, from any folder, also through a link.

It uses only the standard library. It runs the code of the bundle that contains it, in SKILL_KD_PYTHON if
that is set, else in the environment that ``setup`` created, else in the calling interpreter. It writes nothing into the
bundle, not even bytecode. Only ``setup`` installs packages. The other verbs are those of the command line, plus
``doctor``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
BUNDLE = Path(__file__).resolve().parent.parent
TERMINAL = "skill_kd/kd/terminal.py"
PARTS = ("skill_kd/cli", TERMINAL, "templates", "examples", "constraints.txt", "pyproject.toml", "README.md", "LICENSE")
"""Paths that the bundle must contain. The first two are needed to run, and the last three are needed to install."""
USAGE, ENVIRONMENT, LOCKED, INTERRUPTED = 2, 5, 7, 130
"""Exit codes, as in skill_kd/errors.py."""
HERE = "--here"
"""First argument when this script starts itself again: the interpreter is already chosen."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OFFLINE = re.compile(
    r"NewConnectionError|ConnectTimeout|name resolution|dns error|Could not resolve|Failed to (?:fetch|connect)"
    r"|error sending request|Network is unreachable|ProxyError",
    re.IGNORECASE,
)
NVIDIA_SECONDS = 60.0
"""Longest wait for the names of the GPUs."""
TRAINS = ("run", "evaluate", "prove", "demo", "handoff")
"""Verbs that need an extra."""


class Stop(Exception):
    """Ends the program with one message and an exit code."""

    def __init__(self, message: str, code: int = ENVIRONMENT) -> None:
        super().__init__(message)
        self.code = code


def main(args: list[str]) -> int:
    """Run one verb and return its exit code."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a path may contain characters that a terminal cannot show
    try:
        here = args[:1] == [HERE]
        args = args[1:] if here else args
        check_bundle()
        guard_output()
        check_folders()
        if args[:1] == ["setup"]:
            return setup(args[1:])
        if not here and (chosen := chosen_python()):
            return become([chosen, "-B", __file__, HERE, *args])
        return doctor(args[1:]) if args[:1] == ["doctor"] else verb(args)
    except Stop as stop:
        say(f"error: {stop}")
        return stop.code
    except KeyboardInterrupt:
        say("error: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed stdout; without a new stdout, Python would report that at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        failed, fix = "write to stdout", "send it elsewhere"
        if error.filename:
            failed, fix = f"use '{error.filename}'", "set SKILL_KD_CACHE to another folder"
        say(f"error: cannot {failed}: {error.strerror}; fix that, or {fix}")
        return ENVIRONMENT


def open_streams() -> None:
    """Open closed standard streams on the null device. Otherwise the next file, such as the lock, would take one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def guard_output() -> None:
    """Show control characters in all that follows as escapes, with the code that the verbs use."""
    source = importlib.util.spec_from_file_location("terminal", BUNDLE / TERMINAL)
    module = importlib.util.module_from_spec(source)  # type: ignore[arg-type]
    source.loader.exec_module(module)  # type: ignore[union-attr]
    module.wrap_output()


def say(text: str) -> None:
    """Print a message on stderr. stdout is for data."""
    with contextlib.suppress(OSError):  # stderr may be full
        print(text, file=sys.stderr, flush=True)


def call(*args: str) -> str:
    """Return the command line that calls this launcher."""
    words = ["python" if os.name == "nt" else "python3", str(BUNDLE / "scripts" / "kd.py"), *args]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def check_bundle() -> None:
    """Stop if the bundle is incomplete: some installers copy only SKILL.md, or only small files."""
    absent = [part for part in PARTS if not (BUNDLE / part).exists()]
    if absent:
        raise Stop(
            f"the skill in {str(BUNDLE)!r} is incomplete: {', '.join(absent)} missing; "
            "clone the whole repository, or install it again with a newer installer (npx skills@latest add …)"
        )


def check_folders() -> None:
    """Stop if the working folder was removed, or if the cache is in the skill's folder, where nothing is written."""
    try:
        os.getcwd()
    except OSError as error:
        raise Stop(f"the working folder cannot be used: {error.strerror}; change to another one", USAGE) from error
    folder = cache()
    if any(each.exists() and each.samefile(BUNDLE) for each in (folder, *folder.parents)):
        raise Stop(
            f"the cache folder {folder} is in the skill's folder, which every update empties; name another folder in "
            "SKILL_KD_CACHE",
            USAGE,
        )


# --- environment ------------------------------------------------------------------------------------------------------


def cache() -> Path:
    """Return the user's cache folder of skill-kd, which also contains its models.

    A relative XDG_CACHE_HOME does not count, as its specification says. A relative SKILL_KD_CACHE would be another
    folder for each working folder.
    """
    named, base = os.environ.get("SKILL_KD_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    folder = named or os.path.join(base if os.path.isabs(base) else "~/.cache", "skill-kd")
    expanded = os.path.expanduser(folder)
    if not os.path.isabs(expanded):
        raise Stop(f"SKILL_KD_CACHE: '{folder}' is not an absolute path; set one", USAGE)
    return Path(os.path.realpath(expanded))


def environment() -> Path:
    """Return the folder of this bundle's environment. An update that changes no pin keeps it."""
    pins = b"".join((BUNDLE / name).read_bytes() for name in ("constraints.txt", "pyproject.toml"))
    return cache() / f"environment-{hashlib.sha256(pins).hexdigest()[:12]}"


def python_of(folder: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def extras_of(folder: Path) -> list[str] | None:
    """Return the extras that an environment contains, or None if it is incomplete."""
    if not os.path.isfile(folder / "ready.json"):  # nothing would end the reading of a pipe
        return None
    try:
        ready = json.loads((folder / "ready.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    extras = ready.get("extras") if isinstance(ready, dict) else None
    whole = isinstance(extras, list) and all(isinstance(each, str) for each in extras)
    return extras if whole and os.path.isfile(python_of(folder)) else None


def chosen_python() -> str | None:
    """Return the interpreter of SKILL_KD_PYTHON or of ``setup``, or None to use this one."""
    if named := os.environ.get("SKILL_KD_PYTHON"):
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise Stop(f"SKILL_KD_PYTHON: there is no interpreter '{named}'; set another, or unset it", USAGE)
        return os.path.abspath(found)
    folder = environment()
    return None if extras_of(folder) is None else str(python_of(folder))


def become(command: list[str]) -> int:
    """Replace this process by ``command``, or pass on its exit code."""
    if os.name != "nt":
        try:
            os.execv(command[0], command)  # noqa: S606 -- no shell, and no text of a model or a spec
        except OSError as error:
            fix = f"create the environment again: {call('setup', '--clear')}, or set SKILL_KD_PYTHON"
            raise Stop(f"cannot start '{command[0]}': {error.strerror}; {fix}") from error
    with subprocess.Popen(command) as process:  # noqa: S603 -- as above
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the console sends it to the child too
                return process.wait()


def lacking(extra: str | None = None) -> list[str]:
    """Return the requirements of the core, or of an extra, that this interpreter lacks."""
    if sys.version_info < (3, 11):
        return ["Python 3.11 or newer"]
    import tomllib
    from importlib import metadata

    project = tomllib.loads((BUNDLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it is a requirement too
        Requirement = None  # type: ignore[assignment,misc]

    def met(each: str) -> bool:
        try:
            version = metadata.version(re.match(r"[\w.-]+", each)[0])  # type: ignore[index]
        except metadata.PackageNotFoundError:
            return False
        return Requirement is None or Requirement(each).specifier.contains(version, prereleases=True)

    return [each for each in wanted if not met(each)]


# --- verbs ------------------------------------------------------------------------------------------------------------


def verb(args: list[str]) -> int:
    """Run a verb of the command line with the code of the bundle."""
    lack, first, extra = lacking(), args[0] if args else "--help", needed(args)
    if first in ("-h", "--help"):
        print(help_text(), flush=True)
        return 0
    if lack and first == "--version":
        print(f"skill-kd {version()}")
        return 0
    if lack and first in verbs() and {"-h", "--help"} & set(args):
        print(f"{verbs()[first]}\n\nTo see its options, install its packages: {setup_command(extra)}", flush=True)
        return 0
    if lack:
        raise Stop(f"{sys.executable} lacks {', '.join(lack)}; install it with: {setup_command(extra)}")
    sys.path[:] = [str(BUNDLE), *(each for each in sys.path if each != str(BUNDLE / "scripts"))]
    from skill_kd.cli import main as command_line

    code = int(command_line(args))
    if code == ENVIRONMENT:  # an error about a model, a server or a plugin names it
        if extra and (lacking(extra) or lacking("evaluate")):
            say(f"hint: to install missing packages: {setup_command(extra)}")
        elif lacking("train") or lacking("evaluate"):
            say(f"hint: to see what is missing: {call('doctor')}")
    return code


def needed(args: Sequence[str]) -> str | None:
    """Return the extra that a call needs, or None. Evaluating saved generations needs no torch."""
    if not args or args[0] not in TRAINS:
        return None
    saved = args[0] == "evaluate" and any(each.startswith("--teacher-generations") for each in args)
    return "evaluate" if saved else "train"


def setup_command(extra: str | None) -> str:
    """Return the command that installs the packages of the core and of an extra."""
    cpu = ["--cpu"] * (extra == "train" and sys.platform == "linux" and not gpus())
    command = call("setup", *([f"--{extra}"] if extra else []), *cpu)
    return f"unset SKILL_KD_PYTHON, then {command}" if os.environ.get("SKILL_KD_PYTHON") else command


def verbs() -> dict[str, str]:
    """Return the docstring of each verb, read from the source of the command line, which needs no packages."""
    found = {
        "setup": "Create the environment, outside of the skill.",
        "doctor": "List what is missing on this machine.",
    }
    for path in sorted((BUNDLE / "skill_kd" / "cli").glob("*.py")):
        for each in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(each, ast.FunctionDef) and "click.command" in map(_decorator, each.decorator_list):
                found[each.name] = (ast.get_docstring(each) or "").replace("\b\n", "")
    return found


def help_text() -> str:
    """Return the list of verbs, one line each."""
    lines = [f"  {name:<10} {says.partition(chr(10))[0]}" for name, says in verbs().items()]
    return f"usage: {call()} VERB …   (VERB --help shows more)\n\n" + "\n".join(lines)


def _decorator(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


def version() -> str:
    """Return the bundle's version, without importing it."""
    found = re.search(r'__version__ = "([^"]+)"', (BUNDLE / "skill_kd" / "__init__.py").read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def doctor(args: list[str]) -> int:
    """List what is installed and what is missing, with the command that installs it. Exit code 5: no verb can run."""
    parser = argparse.ArgumentParser(prog="kd.py doctor", description=doctor.__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(args)
    core, train, evaluate, gpu = lacking(), lacking("train"), lacking("evaluate"), gpus()
    extras, folder = extras_of(environment()), environment()
    nearest = next(each for each in (cache(), *cache().parents) if os.path.exists(each))
    writable = os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK)
    rows = [
        ("skill", "ok", f"{version()} in {BUNDLE}", ""),
        ("python", "ok", f"{sys.version.split()[0]} in {sys.executable}", ""),
        ("environment", "none" if extras is None else "ok", str(folder), call("setup") if extras is None else ""),
        ("core", *state(core, setup_command(None))),
        ("train", *state(train, setup_command("train"))),
        ("evaluate", *state(evaluate, setup_command("evaluate"))),
        ("gpu", "ok" if gpu else "none", ", ".join(gpu) or "nvidia-smi lists none; torch may support another kind", ""),
        ("cache", "ok" if writable else "not writable", str(cache()), "" if writable else "set SKILL_KD_CACHE"),
    ]
    if options.json:
        keys = ("name", "state", "detail", "fix")
        text = json.dumps({"ready": not core, "rows": [dict(zip(keys, row)) for row in rows]}, indent=2)  # noqa: B905
        print(text.replace("\x7f", r"\u007f"))  # the only control character that json leaves
    else:
        print("\n".join("\t".join(row).rstrip() for row in rows))
    return ENVIRONMENT if core else 0


def state(lack: list[str], fix: str) -> tuple[str, str, str]:
    """Return state, detail and fix of a row."""
    return ("missing", ", ".join(lack), fix) if lack else ("ok", "", "")


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    kd = runtime()
    try:
        done = kd.children.run([program, "--query-gpu=name", "--format=csv,noheader"], NVIDIA_SECONDS)
    except (OSError, kd.errors.ScriptError):  # a broken driver can let it hang
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def runtime() -> Any:
    """Return the part of the bundle that needs only the standard library, with its modules loaded."""
    if str(BUNDLE) not in sys.path:
        sys.path.insert(0, str(BUNDLE))
    import skill_kd.kd.children
    import skill_kd.kd.signals

    return skill_kd.kd


# --- setup ------------------------------------------------------------------------------------------------------------


def setup(args: list[str]) -> int:
    """Create the environment, or add packages to it, and print its interpreter."""
    parser = argparse.ArgumentParser(
        prog="kd.py setup",
        description=f"Install skill-kd from this folder, pinned by constraints.txt, into {environment()}.",
        epilog="Exit codes: 0 ready, 5 something is missing (network, disk space), 7 another setup is running.",
    )
    parser.add_argument("--train", action="store_true", help="packages to train and evaluate, torch included")
    parser.add_argument("--evaluate", action="store_true", help="packages to evaluate saved generations, without torch")
    parser.add_argument("--cpu", action="store_true", help=f"install torch from {CPU_INDEX}: much smaller, no GPU")
    parser.add_argument("--pip", action="store_true", help="use venv and pip, even if uv is installed")
    parser.add_argument("--clear", action="store_true", help="delete the environment first")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run none")
    options = parser.parse_args(args)
    folder, extras = environment(), wanted_extras(options)
    held = None if options.clear else extras_of(folder)
    if options.dry_run:
        print("\n".join(shlex.join(command) for command in steps(folder, held, options)))
        return 0
    with locked(folder) as lock:
        held = None if options.clear else extras_of(folder)
        if held is None or not set(extras) <= set(held):
            if options.train and not (options.cpu or gpus()) and sys.platform == "linux":
                say("note: no NVIDIA GPU was found; --cpu installs a much smaller torch")
            install(folder, steps(folder, held, options), lock)
            mark(folder, sorted({*extras, *(held or [])}))
    say(f"ready; call it with: {call('doctor')}")
    print(python_of(folder))
    return 0


def wanted_extras(options: argparse.Namespace) -> list[str]:
    """Return the extras to install. Training includes evaluation."""
    return ["evaluate"] * (options.evaluate or options.train) + ["train"] * options.train


def steps(folder: Path, held: list[str] | None, options: argparse.Namespace) -> list[list[str]]:
    """Return the commands that create the environment, if ``held`` is None, and install into it."""
    python, pins, uv = str(python_of(folder)), str(BUNDLE / "constraints.txt"), shutil.which("uv")
    extras = ",".join(wanted_extras(options))
    what = f"skill-kd{extras and f'[{extras}]'} @ {BUNDLE.as_uri()}"
    cpu = options.cpu or os.environ.get("PIP_EXTRA_INDEX_URL", "").rstrip("/") == CPU_INDEX
    if uv and not options.pip:
        own = sys.executable if sys.version_info >= (3, 11) else ">=3.11"
        create = [uv, "venv", "--seed", "--clear", "--python", own, str(folder)]
        add = [uv, "pip", "install", "--python", python, "-c", pins, *(["--torch-backend", "cpu"] if cpu else []), what]
    else:
        if sys.version_info < (3, 11):
            raise Stop(f"skill-kd needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}")
        create = [sys.executable, "-I", "-m", "venv", "--clear", str(folder)]
        add = [python, "-I", "-m", "pip", "install", "--no-input", "--retries", "2", "--timeout", "30", "-c", pins]
        add += [*(["--extra-index-url", CPU_INDEX] if cpu else []), what]
    return [add] if held is not None else [create, add]


def install(folder: Path, commands: Sequence[Sequence[str]], lock: int) -> None:
    """Run ``commands``. Their long output goes to a log, for the case that one fails."""
    log = folder.with_suffix(".log")
    with contextlib.suppress(FileNotFoundError):
        log.unlink()  # it may be a link or a pipe
    say(f"installing into {folder}, which takes minutes; the log is {log}")
    environ = {**os.environ, "PIP_USER": "0"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if "PIP_INDEX_URL" in environ:
        environ.setdefault("UV_DEFAULT_INDEX", environ["PIP_INDEX_URL"])
    inherited = () if os.name == "nt" else (lock,)  # the lock is held until the last command has ended
    kd = runtime()
    try:
        with log.open("wb") as file, kd.signals.stoppable():
            for command in commands:
                # uv reads uv.toml and pyproject.toml of the working folder, which may name another package index.
                done = kd.children.run(
                    command, stdout=file, stderr=file, env=environ, pass_fds=inherited, cwd=folder.parent
                )
                if done.returncode:
                    full = shutil.disk_usage(folder.parent).free < 1 << 20  # then the log may be empty
                    text = "No space left" if full else log.read_text(encoding="utf-8", errors="replace")
                    raise Stop(f"{reason(text)}; the log is {log}")
    except kd.signals.Stopped as stopped:
        raise Stop(f"stopped by {stopped}", stopped.exit_code) from None
    except kd.errors.ScriptError as error:
        raise Stop(f"{error}; the log is {log}", error.exit_code) from error
    except OSError as error:
        raise Stop(f"cannot run {error.filename or log}: {error.strerror}") from error


def reason(log: str) -> str:
    """Return one line: the reason why an installation failed, and the fix."""
    if "No space left" in log:
        return "the disk is full; free some space, or set SKILL_KD_CACHE to another folder"
    if "ensurepip" in log:
        return "this Python cannot create environments; install your system's python3-venv, or uv"
    if OFFLINE.search(log):
        return "the package index cannot be reached; connect, or set PIP_INDEX_URL to a mirror, then run setup again"
    if absent := re.search(r"No matching distribution found for (\S+)", log):
        lacks = "cannot be reached or lacks" if "from versions: none" in log else "has other versions than"
        return f"the package index {lacks} {absent[1]}; connect, or set PIP_INDEX_URL to another, then run setup again"
    last = [line.strip() for line in log.splitlines() if line.strip()][-1:]
    return f"the installation failed: {' '.join(last) or 'no output'}"


def mark(folder: Path, extras: list[str]) -> None:
    """Record atomically that the environment is complete."""
    temporary = folder / f".ready.{os.getpid()}"
    try:
        record = {"extras": extras, "skill_kd": version(), "bundle": str(BUNDLE)}
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(folder / "ready.json")
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise Stop(f"cannot write to {folder}: {error.strerror}; fix that, and run setup again") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock out other setups, and yield the lock's descriptor. The system releases the lock when this process ends."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_suffix(".lock").open("a+b")
    except OSError as error:
        raise Stop(
            f"cannot write to {folder.parent}: {error.strerror}; set SKILL_KD_CACHE to another folder"
        ) from error
    with file:
        try:
            acquire(file.fileno())
        except OSError as error:
            raise Stop(f"another setup is running in {folder}; wait until it ends, then try again", LOCKED) from error
        yield file.fileno()


def acquire(descriptor: int) -> None:
    """Acquire the lock, or raise OSError at once."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
