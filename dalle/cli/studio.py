"""Serve the studio, a web page and an HTTP API for one model: dalle studio"""

from dalle.cli.config import command
from dalle.optional_dependencies import check_installed
from dalle.studio.config import StudioConfig


@command("studio")
def main(config: StudioConfig) -> None:
    check_installed("studio", "dalle studio", "fastapi", "uvicorn")
    from dalle.studio.server import run  # needs the extra

    run(config)
