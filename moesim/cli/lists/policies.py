"""The list of policies, by family."""

from __future__ import annotations

import typer

from moesim.cli.lists.kind import Listing

__all__ = ["policies", "show_policies"]


def policies() -> Listing:
    """Return the policies of each family with their options, also those of installed packages."""
    from dataclasses import MISSING, fields

    from moesim.policies import FAMILIES, find, names
    from moesim.policies.registry import NoOptions, broken_packages

    for message in broken_packages():
        typer.echo(f"warning: {message}", err=True)
    listing: Listing = {}
    for family in FAMILIES:
        for name in names(family):
            policy = find(family, name)
            options = {
                field.name: None if field.default is MISSING else field.default
                for field in fields(getattr(policy, "Options", NoOptions))
            }
            # The docstring is the only description that a policy of another package must have.
            summary = (policy.__doc__ or "").strip().split("\n\n")[0]
            listing.setdefault(family, {})[name] = {
                "options": options,
                "what": " ".join(summary.split()),
            }
    return listing


def show_policies(listing: Listing) -> None:
    """Print each family's policies, with what they do and their options."""
    width = max(len(name) for members in listing.values() for name in members)
    for family, members in listing.items():
        typer.echo(f"{family}:")
        for name, about in members.items():
            knobs = ", ".join(f"{key}={value}" for key, value in about["options"].items())
            typer.echo(f"  {name:<{width}}  {about['what']}" + (f" [{knobs}]" if knobs else ""))
    typer.echo("\nA policy of your own may be one file, `policy: FILE.py:CLASS` (docs/systems.md).")
