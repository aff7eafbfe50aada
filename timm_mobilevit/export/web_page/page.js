// The page: pictures from files and from the camera, the likeliest classes, and what is missing where something is.
// No module: those do not even load where the page was opened from the disk, and could not say so.
"use strict";

const part = (name) => document.getElementById(name);
const [canvas, video, hint] = ["canvas", "video", "p"].map((name) => part("picture").querySelector(name));
let classifier, readPicture;

function say(text, wrong = false) {
  part("message").textContent = text;
  part("message").classList.toggle("wrong", wrong);
}

/** Do something, and say why it did not work. */
async function attempt(task) {
  try {
    await task();
  } catch (error) {
    say(error.message, true);
  }
}

function whatIsMissing() {
  if (location.protocol === "file:")
    return "A page that was opened from the disk may not read the files beside it. In its folder, run: python -m http.server, and open http://localhost:8000";
  if (typeof WebAssembly !== "object")
    return "This browser has no WebAssembly, which the model needs. In the lockdown mode of Apple's devices it is switched off.";
  return "";
}

async function start() {
  const missing = whatIsMissing();
  if (missing) throw new Error(missing);
  await keepForOffline();
  const classify = await import("./classify.js");
  readPicture = classify.readPicture;
  classifier = await classify.loadClassifier("./", document.documentElement.dataset.runtime);
  const { architecture } = classifier.config;
  part("about").textContent =
    `${architecture ? `${architecture}, ` : ""}${classifier.labels.length} classes. Pictures stay on this device.`;
  for (const button of document.querySelectorAll("button")) button.disabled = false;
  say("");
}

/** Where the page came encrypted or from this machine, a worker keeps what it loads, and it opens without a network. */
async function keepForOffline() {
  const workers = navigator.serviceWorker;
  if (!workers) return;
  try {
    await workers.register("offline.js");
    if (workers.controller) return;
    await Promise.race([
      new Promise((resolve) => workers.addEventListener("controllerchange", resolve, { once: true })),
      new Promise((resolve) => setTimeout(resolve, 3000)), // private windows of some browsers never give it control
    ]);
  } catch (error) {
    console.info("The page will not open without a network.", error);
  }
}

async function classifyFile(file) {
  if (!file) return;
  let picture;
  try {
    picture = await readPicture(file);
  } catch {
    throw new Error(`This browser cannot read ${file.name} as a picture.`);
  }
  await classify(picture);
}

async function classify(picture) {
  stopCamera();
  show(picture);
  say("");
  const begin = performance.now();
  const { best, milliseconds } = await classifier.classify(picture);
  const all = performance.now() - begin;
  picture.close();
  part("best").replaceChildren(
    ...best.map(({ label, score }) => {
      const line = document.createElement("li");
      const [name, percent] = [label, `${(100 * score).toFixed(1)} %`].map((text) => {
        const span = document.createElement("span");
        span.textContent = text;
        return span;
      });
      line.style.setProperty("--share", `${100 * score}%`);
      line.append(name, percent);
      return line;
    }),
  );
  const device = classifier.device === "webgpu" ? "WebGPU" : "WebAssembly";
  part("time").textContent =
    `${milliseconds.toFixed(1)} ms per image in ${device} on this device; ${all.toFixed(0)} ms with resizing`;
}

function show(picture) {
  // Small scans are shown large; of photographs, no more than the screen has.
  const scale = Math.min(1, 1600 / Math.max(picture.width, picture.height));
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.style.width = picture.width < 200 ? "200px" : "";
  canvas.hidden = false;
  hint.hidden = true;
}

const CAMERA_FAULTS = {
  NotAllowedError: "The browser does not let this page use the camera. Allow it in the settings of the page.",
  NotFoundError: "This device has no camera.",
  NotReadableError: "Another program is using the camera.",
};

/** Open the camera, or take the picture that it shows. */
async function useCamera() {
  if (!navigator.mediaDevices) {
    // Browsers give a page that came over plain http no stream. A phone's camera app takes the picture all the same.
    say("Over http, the camera opens on phones only; with https, or on localhost, it opens here.");
    part("shots").click();
    return;
  }
  if (video.srcObject) {
    await classify(await createImageBitmap(video));
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(CAMERA_FAULTS[error.name] ?? error.message, { cause: error });
  }
  await video.play();
  say("");
  part("best").replaceChildren();
  part("time").textContent = "";
  video.hidden = false;
  canvas.hidden = hint.hidden = true;
  part("camera").textContent = "Take the picture";
}

function stopCamera() {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = true;
  part("camera").textContent = "Use the camera";
}

part("choose").addEventListener("click", () => part("files").click());
part("camera").addEventListener("click", () => attempt(useCamera));
for (const name of ["files", "shots"])
  part(name).addEventListener("change", async ({ target }) => {
    await attempt(() => classifyFile(target.files[0]));
    target.value = ""; // so that the same file can be chosen again
  });

// The whole window takes what is dropped: a browser would leave the page to open it.
addEventListener("dragover", (event) => {
  event.preventDefault();
  part("picture").classList.add("over");
});
addEventListener("dragleave", () => part("picture").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  part("picture").classList.remove("over");
  if (classifier) attempt(() => classifyFile(event.dataTransfer.files[0]));
});

attempt(start);
