"""Look for variables that look like settings and are none."""

import difflib
from collections.abc import Mapping
from typing import Final

from cwm_connector.settings import Settings
from cwm_mcp.doctor.report import Check

_OTHERS: Final = frozenset({"CWM_PYTHON", "CWM_MODEL"})
"""Variables that are not settings of the engine: the plugin's and the compose file's."""


def check_variables(environment: Mapping[str, str]) -> Check:
    """Return a warning with the first unknown CWM_ variable. Its value may be secret and is not repeated."""
    known = _OTHERS | {f"CWM_{field.upper()}" for field in Settings.__dataclass_fields__}
    for name in sorted(environment):
        if name.startswith("CWM_") and not name.startswith("CWM_HTTP_") and name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            meant = f"is {near[0]} meant?" if near else "docs/settings.md lists them"
            return Check(
                name="settings", status="warning", message=f"{name} is no setting{meant}", next=f"unset {name}"
            )
    return Check(name="settings", status="ok", message="all settings are valid")
