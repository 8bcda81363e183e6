"""Open the catalog that the settings name, for the engine.

Runs on the catalog thread. Blocks on the disk, and on Redis if the catalog is shared.
"""

from collections.abc import Callable

from cwm_connector.catalog.base import Catalog
from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.catalog.shared.replica import Gone
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.settings import CatalogKind, Settings


def open_catalog(settings: Settings, home_id: str, on_gone: Callable[[Gone], None]) -> Catalog:
    """Open the catalog on the calling thread, which alone may use it.

    `on_gone` is called with what other engines deleted, see `RedisCatalog.open`. A catalog that is not shared never
    calls it. Raises the errors of `SqliteCatalog.open` or `RedisCatalog.open`.
    """
    if settings.catalog is CatalogKind.SQLITE:
        return SqliteCatalog.open(settings.catalog_path, home_id=home_id)
    assert settings.redis_url is not None  # the settings have checked it
    return RedisCatalog.open(
        settings.redis_url, settings.redis_namespace, settings.catalog_path, home_id=home_id, on_gone=on_gone
    )
