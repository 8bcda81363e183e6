"""Check whether the engine of this CWM_HOME can load a window, by comparing their passports."""

import json

from cwm_connector.core.errors import CWMError
from cwm_connector.core.identity import Passport
from cwm_connector.core.names import check_window_name
from cwm_connector.settings import Settings
from cwm_mcp.api.offline import OfflineCatalog
from cwm_mcp.doctor.report import Check

_SERVE = "cwm serve MODEL  # the model and the options of the freeze"


def check_against(settings: Settings, name: str) -> Check:
    """Compare a window's passport with that of the engine as it last ran. The check names each field that differs."""
    try:
        window = OfflineCatalog(settings.catalog_path).passport(check_window_name(name)).passport
    except CWMError as problem:
        return Check(name="passport", status="error", message=str(problem), next="cwm ls")
    try:
        engine = Passport(json.loads(settings.passport_path.read_text()))
    except (OSError, ValueError):
        message = f"no engine has written its passport to {settings.passport_path} yet"
        return Check(name="passport", status="skipped", message=message, next="cwm serve MODEL")
    differences = [
        f"{field} is {theirs!r} in the window and {ours!r} in the engine"
        for field, ours, theirs in engine.differences(window)
    ]
    if not differences:
        return Check(name="passport", status="ok", message=f"the engine can load window {name}")
    message = f"the engine can't load window {name}: {'; '.join(differences)}"
    return Check(name="passport", status="error", message=message, next=_SERVE)
