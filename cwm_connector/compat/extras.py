"""The extra keys of a request as vLLM has them, and where an adapter's files are.

Each section says on which threads its functions may run. Nothing here blocks, except `adapter_folder`, which reads from
the disk.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.request import Request

ADAPTER_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".tensors")
"""Files with an adapter's weights."""
ADAPTER_CONFIG: Final = "adapter_config.json"

# --- requests; engine thread only ------------------------------------------------------------------------------------


def is_plain(request: "Request") -> bool:
    """Return whether the request has no extra keys but its salt: no adapter, no images, no embeddings."""
    return request.lora_request is None and not request.mm_features and request.prompt_embeds is None


def media_of(request: "Request") -> Iterator[tuple[int, int, str, str]]:
    """Yield (offset, length, modality, identifier) of each image, video or piece of audio in the prompt.

    The identifier is without the adapter's name, which vLLM puts before it if the adapter changes the encoder.
    """
    for feature in request.mm_features or ():
        place = feature.mm_position
        yield place.offset, place.length, feature.modality, feature.mm_hash or feature.identifier


def embeds_of(request: "Request", hash_tokens: int) -> Iterator[tuple[int, int, str]]:
    """Yield (offset, length, digest) of the prompt's embeddings in each of vLLM's blocks.

    vLLM has computed the digests of full blocks for its own hashes. That of the last block is computed here.
    """
    from vllm.v1.core.kv_cache_utils import _gen_prompt_embeds_extra_hash_keys

    count = 0 if request.prompt_embeds is None else len(request.prompt_embeds)
    for start in range(0, count, hash_tokens):
        ((_, digest),) = _gen_prompt_embeds_extra_hash_keys(request, start, start + hash_tokens)
        yield start, min(hash_tokens, count - start), digest.hex()


# --- adapters --------------------------------------------------------------------------------------------------------


def adapter_options(vllm_config: "VllmConfig") -> str:
    """Return the options of the engine that decide what an adapter computes. Any thread."""
    lora = getattr(vllm_config, "lora_config", None)
    names = ("lora_dtype", "fully_sharded_loras", "target_modules", "enable_tower_connector_lora")
    return "" if lora is None else ",".join(f"{name}={getattr(lora, name, None)}" for name in names)


def adapter_folder(path: str) -> Path:
    """Return the folder that vLLM has loaded an adapter from. Nothing is downloaded. Blocks.

    Raises: OSError or ValueError if it isn't there.
    """
    local = Path(path).expanduser()
    if local.is_absolute() or local.exists():
        return local
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo_id=path, local_files_only=True))


def watch_adapter_loads(engine: "EngineCoreProc", called: "Callable[[LoRARequest], None]") -> None:
    """Have `called` called on the engine thread after each adapter that a client has the workers load."""
    load = engine.add_lora

    @functools.wraps(load)  # vLLM decodes the argument by the method's signature
    def load_and_tell(lora_request: "LoRARequest") -> Any:
        loaded = load(lora_request)
        called(lora_request)
        return loaded

    engine.add_lora = load_and_tell
