"""Pictures are drawn after what was measured is written, and none that fails may lose it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def drawn(what: str, draw: Callable[[], Any], *files: Path) -> bool:
    """Whether `draw` succeeded; if not, one line of the log says so, and nothing is raised.

    Args:
        what: is drawn, for the log: "The accuracy-eps curve".
        files: it writes. Older ones are removed first: a card that shows another run's picture is worse than none.
    """
    try:
        for file in files:
            file.unlink(missing_ok=True)
        draw()
        return True
    except Exception as error:  # whatever it is, hours of computing are worth more than a picture
        reason = (str(error).splitlines() or [""])[0]
        logger.warning("%s could not be drawn and is left out (%s: %s).", what, type(error).__name__, reason)
        for file in files:
            file.unlink(missing_ok=True)
        return False
