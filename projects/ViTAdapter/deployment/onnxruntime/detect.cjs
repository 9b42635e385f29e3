// Detects objects in an image with an ONNX file, without Python:
//
//   npm install onnxruntime-node sharp
//   node detect.cjs DETECTOR.onnx IMAGE
//
// It prints a line for each object: class, score, and x0, y0, x1, y1 in pixels,
// by tabs. NODE_PATH names the folder of the packages if it is another one.

const fs = require('node:fs');
const ort = require('onnxruntime-node');
const sharp = require('sharp');

// Yields the fields of a protobuf message as [number, value]: bytes where it
// has a length, otherwise nothing.
function* fieldsOf(bytes) {
  let position = 0;
  const readNumber = () => {
    let number = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[position++];
      number += (byte % 128) * scale;
      if (byte < 128) return number;
    }
  };
  while (position < bytes.length) {
    const tag = readNumber();
    const field = Math.floor(tag / 8);
    if (tag % 8 === 2) {
      const length = readNumber();
      yield [field, bytes.subarray(position, position + length)];
      position += length;
    } else if (tag % 8 === 0) {
      readNumber();
    } else {
      position += tag % 8 === 1 ? 8 : 4;
    }
  }
}

// What the file says of itself. ONNX Runtime for JavaScript has no function for
// it: it is an entry of `metadata_props`, field 14 of ONNX's ModelProto.
function readDescription(file) {
  for (const [field, entry] of fieldsOf(fs.readFileSync(file))) {
    if (field !== 14) continue;
    const [key, value] = [...fieldsOf(entry)].map(([, text]) => text.toString('utf8'));
    if (key === 'vitadapter') return JSON.parse(value);
  }
  throw new Error(`${file} was not written by vitadapter export`);
}

// The (width, height) of an image after Detectron2's ResizeShortestEdge.
function resizedTo(width, height, steps) {
  for (const step of steps) {
    if (step.name !== 'ResizeShortestEdge') {
      throw new Error(`this program cannot resize by ${step.name}`);
    }
    const scale = Math.min(
      step.short_edge_length / Math.min(width, height),
      step.max_size / Math.max(width, height),
    );
    [width, height] = [width, height].map((side) => Math.floor(side * scale + 0.5));
  }
  return [width, height];
}

// Refuses sizes that the file does not take: ONNX Runtime's own message would
// name a node of the graph.
function checkSize(width, height, { size, multiple }) {
  const padded = [height, width].map((side) => Math.ceil(side / multiple) * multiple);
  if (size !== null && padded.some((side, i) => side !== size[i])) {
    throw new Error(`the file takes padded images of ${size} pixels (height, width), got ${padded}`);
  }
  if (size === null && Math.min(...padded) < 2 * multiple) {
    throw new Error(`the sides of the image must be longer than ${multiple} pixels`);
  }
}

// The weights of old pixels in each new one, along one side: a triangle as wide
// as a new pixel, or an old one if that is wider. Pillow resizes so; sharp
// itself shifts what it enlarges.
function weightsOf(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.floor(centre - reach + 0.5), 0);
    const last = Math.min(Math.floor(centre + reach + 0.5), from);
    const weights = [];
    for (let j = first; j < last; j++) {
      weights.push(Math.max(1 - Math.abs((j + 0.5 - centre) / reach), 0));
    }
    const sum = weights.reduce((x, y) => x + y, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

// Resizes one side of pixels; `step` is the distance of neighbours along it.
function resizeSide(pixels, from, to, step) {
  if (from === to) return pixels;
  const lines = pixels.length / (from * step);
  const resized = new Uint8Array(lines * to * step);
  weightsOf(from, to).forEach(({ first, weights }, i) => {
    for (let line = 0; line < lines; line++) {
      for (let k = 0; k < step; k++) {
        let value = 0.5;
        for (let j = 0; j < weights.length; j++) {
          value += weights[j] * pixels[(line * from + first + j) * step + k];
        }
        resized[(line * to + i) * step + k] = value;
      }
    }
  });
  return resized;
}

// Returns an image as ONNX Runtime takes it, (1, 3, H, W) uint8.
function asTensor(image, width, height, order) {
  let pixels = resizeSide(image.data, image.info.width, width, 3); // RGB, pixel by pixel
  pixels = resizeSide(pixels, image.info.height, height, 3 * width);
  const planes = new Uint8Array(pixels.length);
  const area = width * height;
  for (let channel = 0; channel < 3; channel++) {
    const from = order === 'BGR' ? 2 - channel : channel;
    for (let i = 0; i < area; i++) planes[channel * area + i] = pixels[3 * i + from];
  }
  return new ort.Tensor('uint8', planes, [1, 3, height, width]);
}

async function main(file, photo) {
  const description = readDescription(file);
  if (!description.outputs.includes('boxes')) throw new Error(`${file} holds no detector`);
  if (description.full_size) throw new Error(`${file} was exported with --full-size`);
  const image = await sharp(photo)
    .autoOrient()
    .removeAlpha()
    .toColourspace('srgb')
    .raw()
    .toBuffer({ resolveWithObject: true });
  const limits = [image.info.width, image.info.height];
  const [width, height] = resizedTo(...limits, description.resize);
  checkSize(width, height, description);
  const images = asTensor(image, width, height, description.image_format);
  const session = await ort.InferenceSession.create(file);
  const { boxes, scores, classes } = await session.run({ images });
  const scales = [limits[0] / width, limits[1] / height];
  for (let i = 0; i < scores.data.length; i++) {
    const number = Number(classes.data[i]);
    const name = description.thing_classes?.[number] ?? String(number);
    const box = [0, 1, 2, 3].map((side) => {
      const place = boxes.data[4 * i + side] * scales[side % 2];
      return Math.min(Math.max(place, 0), limits[side % 2]); // inside the image
    });
    if (box[2] <= box[0] || box[3] <= box[1]) continue;
    console.log([name, scores.data[i].toFixed(4), ...box.map((x) => x.toFixed(2))].join('\t'));
  }
}

if (process.argv.length !== 4) {
  console.error('usage: node detect.cjs DETECTOR.onnx IMAGE');
  process.exitCode = 2;
} else {
  main(process.argv[2], process.argv[3]).catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}
