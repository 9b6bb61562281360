"""Check for optional packages before work starts. The error has the command that installs them."""

from importlib.util import find_spec


def check_installed(extra: str, purpose: str, *packages: str) -> None:
    """Raise ValueError if any of `packages` of the extra `extra`, which `purpose` needs, is not installed."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ValueError(f"{purpose} needs {', '.join(missing)}: install it with pip install 'dalle[{extra}]'")
