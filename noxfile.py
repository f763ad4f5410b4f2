"""Sessions of nox, each in an environment of tested versions."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False


def install(session: nox.Session, extra: str) -> None:
    """Install kdlab with an extra, at the tested versions."""
    session.install("-c", "constraints.txt", "-e", f".[{extra}]")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default test suite; arguments after -- go to pytest."""
    install(session, "test")
    session.run("pytest", "-n", "3", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages as a site in site/; a broken link fails. After -- another command of mkdocs: serve."""
    install(session, "docs")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def bench(session: nox.Session) -> None:
    """Print what docs/speed.md tells: minutes, and nothing fails for being slow."""
    install(session, "test")
    for name in ("planning", "packing", "tuning", "watching", "starting", "reporting"):
        session.run("python", "-m", f"tests.benchmarks.{name}")


@nox.session
def gpu(session: nox.Session) -> None:
    """On a machine with a GPU: what it is, all tests that need one, and what a step costs at COCO's size.

    Where nothing can be installed, run the three commands below in an environment that has all.
    """
    install(session, "test")
    session.run("kdlab", "doctor", success_codes=range(256))
    session.run("pytest", "-m", "gpu", "-q", success_codes=[0, 1])
    session.run("python", "-m", "tests.benchmarks.coco_size")


@nox.session
def stats(session: nox.Session) -> None:
    """Print the size of the code as few numbers; after --, another checkout and `--suite`, `--report`."""
    install(session, "test")
    session.run("python", "-m", "tests.benchmarks.stats", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types where they are strict: everything that runs without torch."""
    install(session, "lint")
    session.run("mypy")
