from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlab.jobs.files import write_text
from kdlab.redaction import holds_secret, masked, masked_of


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://u:p@h/x", "https://***@h/x"),
        ("https://token@h/x", "https://***@h/x"),
        ("https://u:p/w@h/x", "https://***@h/x"),
        ("https://u:12/w@h/x", "https://***@h/x"),
        ("https://u:p@w@h/x", "https://***@h/x"),
        ("https://u:p@w/v@h/x", "https://***@h/x"),
        ("https://u:p?w@h/x", "https://***@h/x"),
        ("https://u:p#w@h/x", "https://***@h/x"),
        ("postgresql+psycopg://u:p w@h/db", "postgresql+psycopg://***@h/db"),
        ("postgresql://h/db?user=u&password=p", "postgresql://h/db?user=***&password=***"),
        ("https://h/x.pth?token=t&x=1#part", "https://h/x.pth?token=***&x=***#part"),
        ("https://h/x?SECRET", "https://h/x?***"),
        ("https://h/x?a=1&SECRET#part", "https://h/x?a=***&***#part"),
        ("https://h/x#token=t&x=1", "https://h/x#token=***&x=***"),
        ("//u:p@h/db", "//***@h/db"),
        ("//u:p@h/db?password=p", "//***@h/db?password=***"),
        ("http:/u:p@h/x.pth?t=1", "http:/***@h/x.pth?t=***"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3D;UID%3Du;PWD%3Dp", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://h/x.pth;jsessionid=p", "https://h/x.pth;jsessionid=***"),
        ("https://u:cut...", "https://***"),
        ("http://[broken", "http://***"),
    ],
)
def test_secrets_of_an_address_are_masked(address: str, told: str) -> None:
    assert masked(address) == told
    assert masked(f"error: {address} is away") == f"error: {told} is away"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me@work/optuna.db",
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning",
        "https://github.com/open-mmlab/mmdet/x@v3/a.pth and mail to me@work",
        "see http://h:5000 and mail to me@work",
        "see http://localhost: no server; write to admin@example.org",
        "have you seen https://h/x?",
        "// a comment: mail to me@work",
        "/home//me:here/x@v3 and C://x",
        "cwd@neck=0.5",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert not holds_secret(text)


def test_two_addresses_of_a_line_are_masked_each_by_itself() -> None:
    line = "kdlab tune r --set tune.storage=mysql://u:p@h/db --set 'teacher.checkpoint=https://h/x?token=t'"
    told = "kdlab tune r --set tune.storage=mysql://***@h/db --set 'teacher.checkpoint=https://h/x?token=***'"
    assert masked(line) == told


def test_plain_data_is_masked_at_every_depth() -> None:
    data = {"tune": {"storage": "mysql://u:p@h/db"}, "seeds": [0, "https://u:p@h"], "n": None}
    told = {"tune": {"storage": "mysql://***@h/db"}, "seeds": [0, "https://***@h"], "n": None}
    assert masked(data) == told


def test_keys_are_masked_as_values_are() -> None:
    assert masked({"https://u:p@h": 1, 2: 3}) == {"https://***@h": 1, 2: 3}


@pytest.mark.parametrize("start", ["", "tune.storage="])
def test_a_password_in_a_query_can_hold_blanks_where_the_address_is_the_value(start: str) -> None:
    assert masked(f"{start}https://h/x?password=a b c") == f"{start}https://h/x?password=***"
    told = "https://h/x?password=*** is away"
    assert masked(told) == told


@pytest.mark.parametrize(
    "piece", ["http://x:y z ", ".//x:", "http://h/" + "?" * 99, "http://x:y ", "//x:y @"]
)
def test_a_long_line_takes_no_time(piece: str) -> None:
    before = time.process_time()
    masked(piece * (260_000 // len(piece)))
    assert time.process_time() - before < 1


@given(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1))
def test_a_mask_over_a_masked_text_changes_nothing(password: str) -> None:
    once = masked(f"see mysql://user:{password}@host/db")
    assert masked(once) == once


@given(st.text("abcXYZ0189/@?#:&=%+ ", min_size=4).filter(lambda text: not text[:1].isspace()))
def test_no_password_gets_through_whatever_it_holds(password: str) -> None:
    address = f"mysql://user:S3CRET{password}S3CRET@host/db"
    assert "S3CRET" not in masked(address) + masked(f"tune.storage={address}")
    # in a line of text a blank behind an @ ends an address, or two of them would be one
    if " " not in password:
        assert "S3CRET" not in masked(f"error: {address} is away")


def test_what_a_library_says_of_a_part_of_an_address_is_masked() -> None:
    said = masked_of("nonnumeric port: 'pass', user 'me'", "https://me:pass/word@h/x?token=t0ken")
    assert said == "nonnumeric port: '***', user '***'"
    for query in ("?token=t0ken", "?t0ken", "#token=t0ken"):
        assert masked_of("t0ken is no token", f"https://h/x{query}") == "*** is no token"


def test_a_file_that_holds_a_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    for name, text in (("open", "https://h/x"), ("closed", "https://u:p@h/x")):
        write_text(tmp_path / name, text)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in tmp_path.iterdir()}
    assert (modes["closed"], modes["open"] > 0) == (0, True)
