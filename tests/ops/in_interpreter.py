"""Tests for a process where Triton interprets its kernels: it must not have been imported yet."""

import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest


class Served:
    """A plugin of pytest: whoever holds the connection names tests and hears what failed."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = {item.nodeid.partition("::")[2]: item for item in session.items}
        while (name := self.connection.recv()) is not None:
            self.failures.clear()
            session.config.hook.pytest_runtest_protocol(item=tests[name], nextitem=None)
            self.connection.send("\n".join(self.failures))
        return True


def serve(connection: Connection, file: Path) -> None:
    """Collect the tests of a file and run those that are asked for, until None is."""
    os.environ["TRITON_INTERPRET"] = "1"
    pytest.main(["-n", "0", "-p", "no:cacheprovider", str(file)], plugins=[Served(connection)])
