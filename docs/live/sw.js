// Keeps the page for use without a network, and adds the two headers that allow threads.

const name = "datekit-live";

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(keepPage().catch(() => {})); // without it the page still runs, with a network
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const own = event.request.url.startsWith(new URL("./", self.location).href);
  if (event.request.method === "GET" && own) event.respondWith(answer(event.request));
});

/**
 * Keep the page itself, which came before this worker did and may never be asked for again: a host that sends the
 * two headers needs no reload. What the page then loads is kept as it comes.
 */
async function keepPage() {
  const sizes = await (await fetch("files.json")).json();
  const own = Object.keys(sizes).filter((file) => !file.includes("/"));
  await (await caches.open(name)).addAll(["./", "files.json", ...own]);
}

/** From the network where it answers, else what was kept. */
async function answer(request) {
  const cache = await caches.open(name);
  const plain = new Request(request.url.split(/[?#]/)[0]);
  try {
    const fresh = await fetch(request);
    if (fresh.ok) await cache.put(plain, fresh.clone());
    return isolated(fresh);
  } catch (error) {
    const kept = await cache.match(plain);
    if (kept) return isolated(kept);
    throw error;
  }
}

/** The answer with the headers under which a page may share memory between threads. */
function isolated(response) {
  if (response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
