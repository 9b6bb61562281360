"""Progress bars with the time left, on terminals and in notebooks."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

DELAY = 2.0  # seconds before a bar appears: shorter work shows none


def progress_bar(total: float, title: str, unit: str = "images", *, shown: bool = True, **options: Any) -> tqdm:
    """Open a progress bar on stderr, if anybody can see it there.

    total: amount of work in `unit`. title: label in front of the bar.
    shown: False for no bar, as on all ranks but the first.
    options: further arguments of tqdm.
    """
    options = {"delay": DELAY, "dynamic_ncols": True, **options}
    return tqdm(total=total, desc=title, unit=f" {unit}", disable=not (shown and is_visible()), **options)


def with_progress(items: Iterable[T], total: int, title: str, unit: str = "images") -> Iterator[T]:
    """Yield `items`, of which there are `total`, with a progress bar."""
    with progress_bar(total, title, unit) as bar:
        for item in items:
            yield item
            bar.update()


def is_visible() -> bool:
    """Return True if stderr is a terminal or the output of a notebook's cell, and this is the first of all ranks."""
    if os.environ.get("RANK", "0") != "0":
        return False
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Return True if this process is the kernel of a notebook."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython  # comes with ipykernel

    return getattr(get_ipython(), "kernel", None) is not None
