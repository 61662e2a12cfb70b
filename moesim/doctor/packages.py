"""The packages of moesim and of each extra: present or not, and of a version that moesim accepts.

What moesim accepts is stated in the metadata of its installation, which `pyproject.toml` gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moesim.doctor.check import Check

__all__ = ["PURPOSES", "extra_checks", "package_checks", "requirements", "version_of"]

PURPOSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch": "record real models, train small ones, run the real machine (`moesim validate`)",
        "fast": "the compiled back end and fast curves; results are the same without it",
        "html": "`moesim report --html`",
        "search": "an optimum with `moesim search`; a threshold needs no extra",
        "gguf": "sizes and types of weights from GGUF files",
        "machine": "more about this machine with `moesim advise --this-machine`",
        "ray": "`moesim compare --on ray`, and results behind a URL",
        "smollm2": "the pretrained base model smollm2 of `moesim models readme`",
        "digits": "the handwritten digits of the multi-task study",
    }
)
"""What each extra is for. The extras docs, test and dev are for work on moesim itself."""

_OLDEST: Final = (3, 11)


def version_of(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements(lines: Iterable[str] | None = None) -> dict[str, list[Requirement]]:
    """Return what moesim needs, under "", and what each extra needs in addition.

    `lines` are those of the installation's metadata. It is empty where moesim runs from a folder
    without being installed.
    """
    if lines is None:
        try:
            lines = metadata.requires("moesim") or ()
        except metadata.PackageNotFoundError:
            lines = ()
    needed: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        for extra in ("", *PURPOSES):
            always = _holds(requirement, "")
            if always == (extra == "") and _holds(requirement, extra):
                needed.setdefault(extra, []).append(requirement)
    return needed


def _holds(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def package_checks(
    needed: Mapping[str, list[Requirement]], version: Callable[[str], str | None] = version_of
) -> list[Check]:
    """Return the checks of Python, of moesim, and of the packages that it always needs."""
    from moesim import __version__

    running = ".".join(map(str, sys.version_info[:3]))
    python = Check("Python", "ok", f"{running} ({sys.executable})")
    if sys.version_info < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        python = Check("Python", "broken", running, f"install Python {oldest} or newer")
    checks = [python, Check("moesim", "ok", f"{__version__} ({_folder()})")]
    if not needed:
        found = "moesim is not installed as a package, so versions cannot be compared"
        return [*checks, Check("packages", "warning", found, "pip install .")]
    wrong = [each for each in needed.get("", ()) if not _fits(each, version)]
    if wrong:
        found = ", ".join(_said(each, version) for each in wrong)
        return [*checks, Check("packages", "broken", found, "pip install --upgrade moesim")]
    return [*checks, Check("packages", "ok", f"all {len(needed.get('', ()))} have right versions")]


def extra_checks(
    needed: Mapping[str, list[Requirement]], version: Callable[[str], str | None] = version_of
) -> list[Check]:
    """Return a check of each extra: absent, there, or there with a version outside its range."""
    return [_extra(name, needed[name], version) for name in PURPOSES if needed.get(name)]


def _extra(name: str, needed: list[Requirement], version: Callable[[str], str | None]) -> Check:
    said = ", ".join(_said(each, version) for each in needed)
    label, purpose = f"extra {name}", PURPOSES[name]
    install = f"for {purpose}; in a clone of moesim: pip install -c constraints.txt '.[{name}]'"
    if any(version(each.name) is None for each in needed):
        return Check(label, "absent", said, install)
    if not all(_fits(each, version) for each in needed):
        return Check(label, "warning", said, install)
    return Check(label, "ok", said)


def _fits(requirement: Requirement, version: Callable[[str], str | None]) -> bool:
    installed = version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def _said(requirement: Requirement, version: Callable[[str], str | None]) -> str:
    """Return a package with its version, and with the range if the version is not in it."""
    name, installed = canonicalize_name(requirement.name), version(requirement.name)
    if installed is None:
        return f"{name} is not installed"
    fits = _fits(requirement, version)
    return f"{name} {installed}" if fits else f"{name} {installed}, not {requirement.specifier}"


def _folder() -> str:
    from pathlib import Path

    import moesim

    return str(Path(moesim.__file__).parent)
