// Keeps the page for use without a network, and adds the two headers that allow threads.

const name = "datekit-live";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const own = event.request.url.startsWith(new URL("./", self.location).href);
  if (event.request.method === "GET" && own) event.respondWith(answer(event.request));
});

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
