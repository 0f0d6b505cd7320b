"""What `verify_download` does without a Hub; against one, see test_hub_server.py."""

import logging

from hf_robust_ft.provenance.downloads import verify_download


def test_offline_nothing_is_compared_and_the_log_says_so(tmp_path, caplog):
    (tmp_path / "models--someone--model").mkdir()
    with caplog.at_level(logging.INFO, "hf_robust_ft.provenance.downloads"):
        assert verify_download("someone/model", cache_dir=str(tmp_path)) == 0
    assert "someone/model: offline" in caplog.text
    caplog.clear()
    assert verify_download("someone/uncached", cache_dir=str(tmp_path)) == 0 and not caplog.text
