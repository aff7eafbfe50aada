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
  if (event.request.method === "GET") event.respondWith(answer(event.request));
});

async function answer(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request);
    if (kept) return kept;
    throw error;
  }
}
