"""Where the extra `notebooks` is neither installed nor required, what needs it is not looked at."""

from __future__ import annotations

import importlib.util
import os

_IS_REQUIRED = "notebooks" in os.environ.get("PASSEL_REQUIRE", "").split(",")
_IS_HERE = importlib.util.find_spec("matplotlib") is not None
# Where it is required the imports fail, and with them the suite.
collect_ignore = [] if _IS_HERE or _IS_REQUIRED else ["test_pictures.py"]
