"""Ask every address on the web that README.md and the documentation link to whether it still exists.

    python tools/check_links.py

Needs a network, so no test runs it on the real addresses. Exit status 1 if an address is gone. Others that
do not answer, or refuse programs, are named. tests/test_docs.py checks the links within the repository.
"""

import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("dalle/weights/*/*.md")]
OWN = re.compile(r"https?://(?:127\.|localhost|\[|example\.|.*\.example\.)")  # examples, and this computer
GONE = (404, 410)
TIMEOUT = 20  # seconds


def addresses(text: str) -> list[str]:
    """Return the addresses in a page, sorted, without examples."""
    found = re.findall(r"https?://[^\s)\"'`<>\]]+", text)
    return sorted({address.rstrip(".,;:") for address in found if not OWN.match(address)})


def status(address: str) -> int | str:
    """Return the HTTP status of an address after redirects, or the reason that there is none."""
    request = Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            return answer.status
    except HTTPError as error:
        return error.code
    except OSError as error:
        return str(error)


def check(links: Iterable[str]) -> list[str]:
    """Print each address that does not answer with 200, and return those that are gone."""
    links = list(links)
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(links, pool.map(status, links), strict=True))
    for address, answer in found.items():
        if answer != 200:
            print(f"{'gone' if answer in GONE else 'unsure'}: {address} ({answer})")
    return [address for address, answer in found.items() if answer in GONE]


if __name__ == "__main__":
    every = addresses("\n".join(page.read_text(encoding="utf-8") for page in PAGES))
    gone = check(every)
    print(f"{len(every)} addresses, {len(gone)} gone")
    sys.exit(1 if gone else 0)
