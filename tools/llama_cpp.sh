#!/usr/bin/env bash
# tools/llama_cpp.sh: installs llama-cpp-python, the peer of `python -m benchmarks.llama_cpp`, into build/llama_cpp/venv.
# It compiles llama.cpp (cmake and a C++ compiler; ten minutes on two idle cores). Nothing else needs it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=build/llama_cpp/venv
.venv/bin/python -m venv --clear "$venv"
CMAKE_ARGS=-DLLAVA_BUILD=OFF CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install llama-cpp-python==0.3.36
"$venv/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'
