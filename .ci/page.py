"""Build build/page: the page of docs/live, the graphs of .ci/graphs.py, and what runs them.

`python .ci/page.py [FOLDER]`. `--runtime` only brings ONNX Runtime, which needs a network;
`--measure` says how fast the page is here, in notebooks/studies/results/page.json.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
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
REPEATS = 5
STEPS = 20  # of the page's exact run
CHANGE = """([id, value]) => new Promise((told) => {  // seconds until both pictures are there
    const field = document.getElementById(id), began = performance.now();
    new MutationObserver((_, watch) => {
        if (document.body.dataset.state !== "done") return;
        watch.disconnect();
        told((performance.now() - began) / 1000);
    }).observe(document.body, {attributes: true});
    field.value = value;
    field.dispatchEvent(new Event("change"));
})"""


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
        if path.suffix != ".md":
            shutil.copy(path, folder / path.name)
    fetch_runtime()
    for name in RUNTIME_FILES:
        shutil.copy(KEPT / name, folder / "runtime" / name)
    graphs.write(folder / "model")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / "files.json").write_text(json.dumps(sizes))
    print(f"{folder}: {sum(sizes.values()) / 1e6:.1f} MB in {len(files)} files")


def measured(address: str) -> dict[str, float]:
    """Seconds in a new browser without a GPU; all steps of DATE update."""
    import browsers

    with browsers.page() as page:
        began = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.wait_for_selector("#fixed[aria-label]")
        first = time.perf_counter() - began
        page.wait_for_function("document.body.dataset.state === 'done'")
        pair = page.evaluate(CHANGE, ["seed", 1])
        date = page.evaluate(CHANGE, ["rho", 2])  # the picture without DATE is there already
    return {"first picture": first, "step": date / STEPS, "pair": pair}


def measure() -> None:
    """Write medians for WebAssembly with threads and without to the results of the studies."""
    sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "tests" / "browser")]
    import browsers
    from studies.machine import facts
    from studies.results import FOLDER

    from datekit.evaluation.folders import write_json

    here = facts()
    made = {"command": "make bench-page", "date": here["date"]}
    made |= {"hardware": here["hardware"].rsplit(",", 1)[0]}  # without threads, which the page has
    content = made | {"load": round(os.getloadavg()[0], 1), "repeats": REPEATS, "rows": {}}
    with browsers.static(ROOT / "build" / "page") as site:
        for kind in ("threads", "plain"):
            times = [measured(f"{site}?on={kind}") for _ in range(REPEATS)]
            medians = {name: statistics.median([one[name] for one in times]) for name in times[0]}
            content["rows"][kind] = {name: round(value, 3) for name, value in medians.items()}
    write_json(FOLDER / "page.json", content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    if sys.argv[1:] == ["--runtime"]:
        sys.exit(fetch_runtime())
    if sys.argv[1:] == ["--measure"]:
        sys.exit(measure())
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "page")
