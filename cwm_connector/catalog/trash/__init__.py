"""The catalog's trash: `base.py` is its interface, `sqlite.py` and `shared.py` belong to the two catalogs.

Catalog thread, as the rest of the catalog. Every method may block.
"""
