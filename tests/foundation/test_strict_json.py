"""JSON from outside is read strictly, and whatever is echoed, a message stays short."""

import math
import pickle

import numpy as np
import pytest

from hf_headprune import errors
from hf_headprune._strict_json import parse, read_text
from hf_headprune.errors import LONGEST_MESSAGE, CertificateError, HeadPruneError, InvalidPlanError, shown


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, "x", null, true]}', "[]", "1e300", "-12345678901234567890"[:20]])
def test_plain_json_is_read_as_it_is(text):
    assert parse(text, "here") == eval(text.replace("null", "None").replace("true", "True"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[" * 40 + "]" * 40, "nests at most 32 deep"),
        ("9" * 21, "has 21 digits"),
        ("9" * 5000, "has 5,000 digits"),
        ("NaN", "NaN is not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ("1e999", "'1e999' is not a finite number"),
        ('{"a": 1, "a": 2}', "the name 'a' occurs twice"),
        (None, "received NoneType"),
        (b"[]", "received bytes"),
    ],
)
def test_other_text_is_refused_with_the_error_asked_for(text, rule):
    with pytest.raises(InvalidPlanError, match=f"here: .*{rule}") as refused:
        parse(text, "here", error=InvalidPlanError)
    assert len(str(refused.value)) <= LONGEST_MESSAGE


def test_text_beyond_the_limit_is_not_even_parsed(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_headprune._strict_json.LONGEST_TEXT", 10)
    assert parse("[1, 2, 3]", "here") == [1, 2, 3]
    with pytest.raises(CertificateError, match="at most 10 characters, received 12 characters"):
        parse("[1, 2, 3, 4]", "here")
    (tmp_path / "file").write_text("[1, 2, 3, 4]")
    with pytest.raises(CertificateError, match="at most 10 bytes, received 12"):
        read_text(tmp_path / "file")


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe"), lambda _: None]
)
def test_a_file_that_can_not_be_read_as_text_is_refused(tmp_path, make):
    make(tmp_path / "file")
    with pytest.raises(CertificateError, match="can't be read as text"):
        read_text(tmp_path / "file")


class Unprintable:
    def __repr__(self):
        raise RuntimeError


DEEP = []
for _ in range(500):
    DEEP = [DEEP]


LARGE = ["x" * 10**6, b"y" * 10**6, 10**5000, -(10**400), list(range(10**6)), {i: i for i in range(10**5)}, DEEP]
LARGE += [range(10**30), np.zeros((500, 500)), ("x" * 10**5,) * 50, {"x" * 10**5: 1}]


@pytest.mark.parametrize("value", [*LARGE, Unprintable(), math.nan, None], ids=lambda value: type(value).__name__)
def test_a_shown_value_is_short_whatever_it_is(value):
    assert 0 < len(shown(value)) <= 200


def test_small_values_are_shown_as_they_are():
    for value in ("x", 5, 2.5, None, [1, "a"], {"a": (1,)}, True):
        assert shown(value) == repr(value)


@pytest.mark.parametrize("kind", HeadPruneError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_a_long_message_loses_its_middle_in_every_error(kind):
    text = "where: rule, received " + "x" * 10**6 + ". What to do."
    cut = str(kind(text))
    assert len(cut) == LONGEST_MESSAGE
    assert cut.startswith("where: rule, received xxx")
    assert cut.endswith("xxx. What to do.")
    assert "characters in all" in cut
    assert str(kind("short")) == "short"
    assert str(pickle.loads(pickle.dumps(kind(text)))) == cut


def test_every_error_is_one_of_the_library():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert set(kinds) == {HeadPruneError, *HeadPruneError.__subclasses__()}
