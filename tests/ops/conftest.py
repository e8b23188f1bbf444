"""Tests for Triton's interpreter: whether it is used is settled when triton is imported.

So tests with the fixture `interpreter` are collected here, and run in another process.
"""

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection

import in_interpreter
import pytest


@pytest.fixture(scope="module")
def interpreter(request: pytest.FixtureRequest) -> Iterator[Connection | None]:
    """Give the connection to the process whose kernels are interpreted; None within it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield None
        return
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=in_interpreter.serve, args=(there, request.path))
    process.start()
    there.close()
    yield here
    here.send(None)
    process.join()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run what needs the interpreter there; what fails there is this test's failure."""
    process = pyfuncitem.funcargs.get("interpreter")
    if process is None:
        return None
    process.send(pyfuncitem.nodeid.partition("::")[2])
    if failures := process.recv():
        pytest.fail(failures, pytrace=False)
    return True
