"""Optional packages: looked for before work begins, and named with the command that installs them."""

from importlib.util import find_spec


def check_installed(extra: str, purpose: str, *packages: str) -> None:
    """Raise ValueError unless all these packages of an extra, which `purpose` needs, are installed."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ValueError(f"{purpose} needs {', '.join(missing)}: install it with pip install 'dalle[{extra}]'")
