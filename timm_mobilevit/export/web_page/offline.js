// A service worker that keeps every file which the page has loaded, so that the page opens without a network.
// The server is asked first, for it may have a newer model.
"use strict";

const CACHE = "timm-mobilevit";
const PAGE = ["./", "index.html", "page.css", "page.js"]; // loaded before this worker is there

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(PAGE)));
});

addEventListener("activate", (event) => event.waitUntil(clients.claim()));

addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event));
});

async function answer(event) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(event.request, { cache: "no-cache" });
    // What cannot be kept, since the disk is full, is answered all the same.
    if (response.ok) event.waitUntil(cache.put(event.request, response.clone()).catch(() => {}));
    return response;
  } catch (error) {
    const kept = await cache.match(event.request);
    if (kept) return kept;
    throw error;
  }
}
