// The page of digits: a drawing becomes a scan like those that the model was trained on, and the model names it.
"use strict";

const page = document.getElementById("digits");
const [drawing, scan] = page.querySelectorAll("canvas");
const [start, clear] = page.querySelectorAll("button");
const message = page.querySelector("[role=status]");
const pen = drawing.getContext("2d");
let strokes = [];
let classifier;
let isBusy = false;

start.addEventListener("click", async () => {
  if (location.protocol === "file:") {
    message.textContent = "A page that was opened from the disk may not read the model beside it; on a server it may.";
    return;
  }
  start.disabled = true;
  message.textContent = "Loading…";
  try {
    const { loadClassifier } = await import("./digits/classify.js");
    classifier = await loadClassifier("digits/", page.dataset.runtime);
    message.textContent = "";
    page.classList.add("ready");
  } catch (error) {
    message.textContent = error.message;
    start.disabled = false;
  }
});

clear.addEventListener("click", () => {
  strokes = [];
  pen.clearRect(0, 0, drawing.width, drawing.height);
  scan.getContext("2d").clearRect(0, 0, 8, 8);
  page.querySelector("ol").replaceChildren();
  message.textContent = "";
});

drawing.addEventListener("pointerdown", (event) => {
  drawing.setPointerCapture(event.pointerId);
  strokes.push([]);
  draw(event);
});
drawing.addEventListener("pointermove", (event) => event.buttons && strokes.length && draw(event));

function draw(event) {
  const scale = drawing.width / drawing.clientWidth;
  const stroke = strokes.at(-1);
  stroke.push([event.offsetX * scale, event.offsetY * scale]);
  line(pen, [stroke.slice(-2)], 14, "black");
  answer();
}

/** Lines through points; a single point becomes a dot. */
function line(context, lines, width, colour) {
  Object.assign(context, { lineWidth: width, strokeStyle: colour, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  for (const [first, ...others] of lines) {
    context.moveTo(...first);
    for (const point of others.length ? others : [first]) context.lineTo(...point);
  }
  context.stroke();
}

async function answer() {
  if (isBusy) return; // a later point of the drawing asks again
  isBusy = true;
  try {
    while (strokes.length) {
      const [number, points] = [strokes.length, strokes.at(-1).length];
      makeScan();
      const { best, milliseconds } = await classifier.classify(scan, 3);
      if (!strokes.length) break; // cleared meanwhile
      show(best);
      message.textContent = `${milliseconds.toFixed(1)} ms per image in WebAssembly on this device`;
      if (strokes.length === number && strokes.at(-1).length === points) break;
    }
  } catch (error) {
    message.textContent = error.message;
  } finally {
    isBusy = false;
  }
}

/**
 * As the scans were made: the digit fills a square of 32 × 32 pixels, each black or white, and a pixel of the scan counts
 * those of a square of 4 × 4. Pens differ, but all scans have about as much ink, 313 of 1,024 pixels.
 */
function makeScan() {
  const points = strokes.flat();
  const [left, top] = [0, 1].map((axis) => Math.min(...points.map((point) => point[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...points.map((point) => point[axis])));
  const side = Math.max(right - left, bottom - top, 1);
  let length = 0;
  for (const stroke of strokes)
    for (let index = 1; index < stroke.length; index++)
      length += Math.hypot(stroke[index][0] - stroke[index - 1][0], stroke[index][1] - stroke[index - 1][1]);
  const width = Math.min(8, Math.max(3, 313 / ((28 * length) / side)));
  const scale = (32 - width) / side;
  const lines = strokes.map((stroke) =>
    stroke.map(([x, y]) => [16 + (x - (left + right) / 2) * scale, 16 + (y - (top + bottom) / 2) * scale]),
  );
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 32;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  line(context, lines, width, "white");
  const ink = context.getImageData(0, 0, 32, 32).data;
  const image = new ImageData(8, 8);
  for (let y = 0; y < 8; y++)
    for (let x = 0; x < 8; x++) {
      let count = 0;
      for (let row = 4 * y; row < 4 * y + 4; row++)
        for (let column = 4 * x; column < 4 * x + 4; column++) count += ink[4 * (32 * row + column) + 3] > 127;
      const grey = (count * 255) / 16;
      image.data.set([grey, grey, grey, 255], 4 * (8 * y + x));
    }
  scan.getContext("2d").putImageData(image, 0, 0);
}

function show(best) {
  page.querySelector("ol").replaceChildren(
    ...best.map(({ label, score }) => {
      const row = document.createElement("li");
      row.style.setProperty("--share", `${100 * score}%`);
      row.textContent = `${label}: ${(100 * score).toFixed(0)} %`;
      return row;
    }),
  );
}
