"""The catalog that the settings ask for, opened for the engine."""

from collections.abc import Callable

from cwm_connector.catalog.base import Catalog
from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.catalog.shared.replica import Gone
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.settings import CatalogKind, Settings


def open_catalog(settings: Settings, store_id: str, on_gone: Callable[[Gone], None]) -> Catalog:
    """On the thread that will use it. `on_gone`: see `RedisCatalog.open`; a catalog of one's own never calls it.

    Raises: what the two `open` raise.
    """
    if settings.catalog is CatalogKind.SQLITE:
        return SqliteCatalog.open(settings.catalog_path, store=store_id)
    assert settings.redis_url is not None  # the settings' own check
    return RedisCatalog.open(
        settings.redis_url, settings.redis_namespace, settings.catalog_path, store=store_id, on_gone=on_gone
    )
