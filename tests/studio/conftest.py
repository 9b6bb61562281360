"""Fixtures: a studio with the tests' tiny models, behind a real server on a free port."""

from collections.abc import Iterator

import pytest
from running_studio import Studio, running

from dalle.studio.config import StudioConfig
from dalle.studio.session import Session


@pytest.fixture(scope="session")
def make_session(checkpoints):
    """Function that loads a session of the tiny models, with settings of `StudioConfig`."""
    return lambda **settings: Session.load(StudioConfig(**{"checkpoint": str(checkpoints), **settings}))


@pytest.fixture(scope="module")
def studio(make_session) -> Iterator[Studio]:
    """A running studio that the tests of a module share."""
    with running(make_session()) as studio:
        yield studio
