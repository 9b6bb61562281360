"""What prepare.py can be told, whatever it prepares; each import adds its own, beside its code."""

from dataclasses import dataclass


@dataclass
class PrepareConfig:
    """Options of prepare.py."""

    out: str | None = None  # folder to write, which must be new or empty; None: outputs/<name of what is prepared>
