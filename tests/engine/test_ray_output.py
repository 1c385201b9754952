"""What Ray's threads print is logged; what the program prints is printed."""

import threading

import pytest

from offramp.engine.ray_output import logged


def test_standard_output_is_left_to_the_program(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    says = "\x1b[33m(raylet)\x1b[0m A node is lost:\n    its last line"
    with logged():
        thread = threading.Thread(target=print, args=(says,), name="ray_listen_error_messages")
        thread.start()
        thread.join()
        print("a result", flush=True)
    assert capsys.readouterr().out == "a result\n"
    assert [record.getMessage() for record in caplog.records] == ["(raylet) A node is lost:\n    its last line"]
