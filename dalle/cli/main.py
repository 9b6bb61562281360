"""The command `dalle` after pip install: dalle train is train.py, dalle sample is sample.py, and so on."""

import sys
from difflib import get_close_matches
from importlib import import_module

from dalle.cli.help import print_help

DESCRIPTIONS = {
    "train": "train one model, or all three",
    "sample": "sample images for captions, or edit images",
    "evaluate": "measure a checkpoint on held-out data",
    "report": "make tables and plots of sweeps and runs",
    "prepare": "check a data set, encode it, import and export weights",
    "studio": "draw and edit images in the browser, and serve an HTTP API",
    "verify": "say which model and settings made an image: dalle verify FILE",
}


def main() -> None:
    """Run the command named by the first argument; it gets the remaining arguments. A wrong name ends with status 2."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print_help(usage())
        return
    if name not in DESCRIPTIONS:
        matches = get_close_matches(name, DESCRIPTIONS, n=1)
        hint = f"did you mean dalle {matches[0]}?" if matches else f"choose one of {', '.join(DESCRIPTIONS)}"
        print(f"there is no command {name!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"dalle {name}", *arguments]
    import_module(f"dalle.cli.{name}").main()


def usage() -> str:
    """Return the help text of `dalle`: a line for each command."""
    lines = [f"  dalle {name:9} {text}" for name, text in DESCRIPTIONS.items()]
    return "\n".join(
        [
            "DALL-E 1: discrete VAE, transformer and CLIP, trained, sampled and reranked.",
            "",
            *lines,
            "",
            "All but verify take settings as name=value; dalle <command> --help lists them.",
        ]
    )
