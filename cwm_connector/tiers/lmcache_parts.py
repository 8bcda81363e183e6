"""Everything that this project takes from LMCache, imported in one place.

These are parts of its maintained side: the host memory pool (page-locked where there is a CUDA device) and the native
file client. LMCache is pinned to one release. tests/cwm_connector/tiers/test_lmcache_contract.py tests what we rely on
and fails when a release changes it.

LMCache prints its log from INFO on to stderr and warns of every full pool, which is normal for a cache. Its own setting
LMCACHE_LOG_LEVEL, read at import, quiets that here unless it is set already.
"""

import os

os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")

from lmcache.lmcache_fs import LMCacheFSClient
from lmcache.v1.memory_allocators.mixed_memory_allocator import MixedMemoryAllocator
from lmcache.v1.memory_allocators.tensor_memory_allocator import TensorMemoryAllocator

__all__ = ["LMCacheFSClient", "MixedMemoryAllocator", "TensorMemoryAllocator"]
