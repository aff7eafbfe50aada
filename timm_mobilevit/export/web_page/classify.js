// A classifier in ONNX Runtime Web, and the pixels that it takes: those that timm's transform makes of a picture.

/** Where the runtime comes from if not from a folder of one's own. */
export const RUNTIME = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/";

/**
 * Load a model from a folder that `timm-mobilevit export web` has written.
 *
 * @param {string} folder Its address, with a slash at the end.
 * @param {string} runtime Address of the folder of ONNX Runtime Web, with a slash at the end.
 * @returns {Promise<Classifier>}
 */
export async function loadClassifier(folder, runtime = RUNTIME) {
  const [config, preprocessor] = await Promise.all(
    ["config.json", "preprocessor_config.json"].map(async (name) => (await read(folder + name)).json()),
  );
  const dtype = config["transformers.js_config"]?.dtype;
  // A GPU that a program imitates is slower than WebAssembly, and eight bits are for WebAssembly.
  const adapter = dtype === "q8" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
  const devices = adapter && !(adapter.info ?? adapter).isFallbackAdapter ? ["webgpu", "wasm"] : ["wasm"];
  for (const device of devices) {
    try {
      const file = (dtype ?? (device === "wasm" ? "q8" : "fp32")) === "q8" ? "model_quantized" : "model";
      const classifier = await open(`${folder}onnx/${file}.onnx`, runtime, device, config, preprocessor);
      await classifier.run(new Float32Array(classifier.pixels)); // the first run prepares the others, and takes longer
      return classifier;
    } catch (error) {
      if (device === "wasm") throw error;
      console.info("WebGPU does not run this model; WebAssembly does it instead.", error);
    }
  }
}

async function open(model, runtime, device, config, preprocessor) {
  const base = new URL(runtime, document.baseURI).href;
  const [ort, file] = await Promise.all([import(`${base}ort.${device}.bundle.min.mjs`), read(model)]);
  // It warns of shapes that are computed beside a GPU, as they should be.
  const options = { executionProviders: [device], logSeverityLevel: 3 };
  const session = await ort.InferenceSession.create(new Uint8Array(await file.arrayBuffer()), options);
  return new Classifier(ort, session, device, config, preprocessor);
}

async function read(address) {
  const response = await fetch(address, { cache: "no-cache" }); // a newer model has the same name
  if (!response.ok) throw new Error(`${address} cannot be loaded (${response.status} ${response.statusText})`);
  return response;
}

export class Classifier {
  constructor(ort, session, device, config, preprocessor) {
    const { height, width } = preprocessor.crop_size;
    Object.assign(this, { ort, session, device, config, preprocessor, shape: [1, 3, height, width] });
    this.pixels = 3 * height * width;
    this.labels = Object.keys(config.id2label).map((index) => config.id2label[index]);
  }

  /**
   * The likeliest classes of a picture, and how long the model took.
   *
   * @param {CanvasImageSource & {width: number, height: number}} picture
   * @returns {Promise<{best: {label: string, score: number}[], milliseconds: number}>}
   */
  async classify(picture, count = 5) {
    const { logits, milliseconds } = await this.run(toPixels(picture, this.preprocessor));
    const largest = Math.max(...logits);
    const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
    const sum = powers.reduce((a, b) => a + b);
    const best = powers.map((power, index) => ({ label: this.labels[index], score: power / sum }));
    best.sort((a, b) => b.score - a.score);
    return { best: best.slice(0, count), milliseconds };
  }

  async run(pixels) {
    const start = performance.now();
    const feed = { pixel_values: new this.ort.Tensor("float32", pixels, this.shape) };
    const logits = (await this.session.run(feed)).logits.data;
    const milliseconds = performance.now() - start;
    if (!logits.every(Number.isFinite))
      throw new Error(`the model gives numbers that are not finite on ${this.device}`);
    return { logits, milliseconds };
  }
}

/** A file as a picture: upright, as browsers turn it by themselves, and in the colours of the file. */
export const readPicture = (file) => createImageBitmap(file, { colorSpaceConversion: "none" });

/** Red, green and blue planes of a picture: resized, cropped and normalised. */
export function toPixels(picture, { size, crop_size, interpolation, rescale_factor, image_mean, image_std }) {
  const { width, height } = picture;
  const edge = size.shortest_edge;
  const resized = edge
    ? [width, height].map((side) => Math.trunc((edge * side) / Math.min(width, height)))
    : [size.width, size.height];
  const across = weights(width, resized[0], crop_size.width, interpolation);
  const down = weights(height, resized[1], crop_size.height, interpolation);
  const image = resizeDown(resizeAcross(picture, across), across.length, down);
  const pixels = new Float32Array(image.length);
  const plane = image.length / 3;
  for (let at = 0; at < plane; at++)
    for (let channel = 0; channel < 3; channel++)
      pixels[channel * plane + at] =
        (image[3 * at + channel] * rescale_factor - image_mean[channel]) / image_std[channel];
  return pixels;
}

// PIL's filters, by their reach and their weight at a distance. They are stretched where a picture becomes smaller, so
// that every pixel counts; a canvas has filters of its own, which differ between browsers.
const sinc = (x) => (x ? Math.sin(Math.PI * x) / (Math.PI * x) : 1);
const FILTERS = {
  bilinear: [1, (x) => 1 - x],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2)],
  lanczos: [3, (x) => sinc(x) * sinc(x / 3)],
};

/** For each position that the crop keeps of a resized side: where the pixels begin that it is made of, and their shares. */
function weights(from, to, kept, interpolation) {
  const [reach, filter] = FILTERS[interpolation];
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const half = Math.floor((to - kept) / 2);
  const offset = (to - kept) % 2 && half % 2 ? half + 1 : half; // half a pixel goes to the even side, as Python rounds
  return Array.from({ length: kept }, (_, index) => {
    const centre = (index + offset + 0.5) * scale;
    const begin = Math.max(0, Math.floor(centre - reach * stretch + 0.5));
    const end = Math.min(from, Math.floor(centre + reach * stretch + 0.5));
    const shares = Float64Array.from({ length: end - begin }, (_, step) => {
      const distance = Math.abs(begin + step + 0.5 - centre) / stretch;
      return distance < reach ? filter(distance) : 0;
    });
    const sum = shares.reduce((a, b) => a + b);
    return { begin, shares: shares.map((share) => share / sum) };
  });
}

/** The rows of a picture, each resized. It is read in strips: phones refuse canvases of the size of their photographs. */
function resizeAcross(picture, across) {
  const { width, height } = picture;
  const result = new Uint8ClampedArray(3 * across.length * height);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, Math.min(height, 256)];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy";
  for (let top = 0, at = 0; top < height; top += canvas.height) {
    const rows = Math.min(canvas.height, height - top);
    context.drawImage(picture, 0, top, width, rows, 0, 0, width, rows);
    const strip = context.getImageData(0, 0, width, rows).data;
    for (let row = 0; row < rows; row++)
      for (const { begin, shares } of across)
        for (let channel = 0; channel < 3; channel++)
          result[at++] = mix(strip, 4 * (row * width + begin) + channel, 4, shares);
  }
  return result;
}

function resizeDown(image, width, down) {
  const result = new Uint8ClampedArray(3 * width * down.length);
  let at = 0;
  for (const { begin, shares } of down)
    for (let value = 0; value < 3 * width; value++)
      result[at++] = mix(image, 3 * width * begin + value, 3 * width, shares);
  return result;
}

/** A weighted sum, rounded as PIL rounds. */
function mix(values, start, step, shares) {
  let sum = 0.5;
  for (let index = 0; index < shares.length; index++) sum += shares[index] * values[start + index * step];
  return Math.floor(sum);
}
