// What computes: WebGPU where there is a graphics processor, else WebAssembly, with threads if it may.

const KINDS = ["webgpu", "threads", "plain"];
const FILES = {
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm.gzip"],
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm.gzip"],
};
const folder = new URL("runtime/", import.meta.url).href;

/** The kinds to try in turn: what is asked for, else what is best here, then what always works. */
export async function kinds(asked) {
  if (asked && !KINDS.includes(asked)) throw new Error(`on=${asked} is unknown: write one of ${KINDS.join(", ")}`);
  const best = asked || ((await graphics()) ? "webgpu" : "threads");
  return best === "webgpu" ? ["webgpu", "threads"] : [best];
}

/** Whether WebGPU runs on a graphics processor, not on one that the CPU imitates. */
async function graphics() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const { isFallbackAdapter, architecture } = adapter?.info ?? {};
  return Boolean(adapter) && !(isFallbackAdapter ?? adapter.isFallbackAdapter) && architecture !== "swiftshader";
}

/** ONNX Runtime for one kind: {ort, provider, how}. `bytes` reads a file of the page. */
export async function runtime(kind, bytes) {
  const provider = kind === "webgpu" ? "webgpu" : "wasm";
  const [module, binary] = FILES[provider];
  const [ort, wasm] = await Promise.all([import(folder + module), bytes(`runtime/${binary}`)]);
  const several = kind === "threads" && self.crossOriginIsolated;
  const numThreads = several ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  Object.assign(ort.env.wasm, { numThreads, wasmPaths: folder, wasmBinary: wasm.buffer });
  const threads = numThreads > 1 ? `${numThreads} threads` : "one thread";
  return { ort, provider, how: kind === "webgpu" ? "WebGPU" : `WebAssembly, ${threads}` };
}
