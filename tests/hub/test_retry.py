import json

import pytest

from hf_robust_ft.hub import retry as patience
from hf_robust_ft.hub.errors import described


def read_page():
    return json.loads("<html>")


def test_a_gateways_page_in_place_of_json_is_asked_for_again(monkeypatch, caplog):
    monkeypatch.setattr(patience, "WAITS", (0.0, 0.0))
    answers = iter([read_page, read_page, lambda: "done"])
    assert patience.retry(lambda: next(answers)(), "Committing") == "done"
    assert caplog.text.count("Committing: the Hub's answer is no JSON") == 2


def test_what_stays_out_of_order_is_raised_and_told_in_words(monkeypatch):
    monkeypatch.setattr(patience, "WAITS", (0.0,))
    with pytest.raises(json.JSONDecodeError) as raised:
        patience.retry(read_page, "Committing")
    assert "out of order" in described(raised.value)
