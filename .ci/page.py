"""Build build/page: the page of docs/live, the graphs of .ci/graphs.py, and what runs them.

`python .ci/page.py [FOLDER]`. `--runtime` only brings ONNX Runtime, which needs a network.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import graphs

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = "onnxruntime-web@1.30.0"  # of the npm registry, with what npm says of its content
DIGEST = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZ"
    "ClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
RUNTIME_FILES = (  # for WebAssembly, for WebGPU; no host unpacks ".gzip" of its own accord
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm.gzip",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm.gzip",
)
KEPT = ROOT / "build" / "runtime"


def fetch_runtime() -> None:
    """Put the files of onnxruntime-web into build/runtime, from npm, where they are not there."""
    if all((KEPT / name).is_file() for name in RUNTIME_FILES):
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", RUNTIME, "--json"], cwd=KEPT, check=True, capture_output=True, text=True
    )
    (told,) = json.loads(packed.stdout)
    if told["integrity"] != DIGEST:
        raise SystemExit(f"{RUNTIME} is not what was tested: {told['integrity']}")
    with tarfile.open(KEPT / told["filename"]) as archive:
        for name in RUNTIME_FILES:
            plain = name.removesuffix(".gzip")
            content = archive.extractfile(f"package/dist/{plain}").read()
            (KEPT / name).write_bytes(content if name == plain else gzip.compress(content, mtime=0))
    (KEPT / told["filename"]).unlink()


def build(folder: Path) -> None:
    """Write the whole page into a folder, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    (folder / "runtime").mkdir()
    for path in (ROOT / "docs" / "live").iterdir():
        shutil.copy(path, folder / path.name)
    fetch_runtime()
    for name in RUNTIME_FILES:
        shutil.copy(KEPT / name, folder / "runtime" / name)
    graphs.write(folder / "model")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / "files.json").write_text(json.dumps(sizes))
    print(f"{folder}: {sum(sizes.values()) / 1e6:.1f} MB in {len(files)} files")


if __name__ == "__main__":
    if sys.argv[1:] == ["--runtime"]:
        sys.exit(fetch_runtime())
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "page")
