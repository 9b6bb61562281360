"""Run the tests on each supported version of Python: make interpreters. Those not installed are named and skipped."""

import os

import nox

nox.options.error_on_missing_interpreters = False
TORCH = os.environ.get("TORCH", "torch==2.13.0")


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    session.install(TORCH)
    session.install(".[data,eval,decoder,hub,sign,croissant,studio,slurm,dev]")
    session.install("--no-deps", "dall-e==0.1")  # OpenAI's code, to compare with; it asks for torchvision
    arguments = session.posargs or ["-n", "2", "--dist", "loadfile", "-m", "not slow and not browser"]  # as make test
    session.run("pytest", *arguments, env={"OMP_NUM_THREADS": "1"})
