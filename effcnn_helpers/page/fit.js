// From a picture to the network's image, as `pictures` in Python makes it: the whole picture, as large as fits, bars
// beside it in the median colour of its border, grey where the network takes one map.

const LARGEST = 2048;  // pixels a side: a larger picture is made smaller by the browser first

// The image of a picture: numbers from 0 to 255, map after map. source: what a canvas can draw.
function fitted(source, { maps, height, width }) {
  const { pixels, size } = pixelsOf(source);
  const scale = Math.min(width / size.width, height / size.height);
  const inner = { width: Math.max(1, roundedToEven(scale * size.width)),
                  height: Math.max(1, roundedToEven(scale * size.height)) };
  const narrow = resized(pixels, size.width, size.height, inner.width, true);
  const colours = padded(resized(narrow, inner.width, size.height, inner.height, false), inner, width, height);
  const image = new Float32Array(maps * height * width);
  for (let at = 0; at < height * width; at++) {
    const [red, green, blue] = colours.subarray(3 * at, 3 * at + 3);
    if (maps == 1) image[at] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;  // as seen: green is bright
    else [red, green, blue].forEach((number, map) => { image[map * height * width + at] = number; });
  }
  return image;
}

// Red, green and blue of each pixel, on white where the picture is transparent.
function pixelsOf(source) {
  const share = Math.min(1, LARGEST / Math.max(source.width, source.height));
  const size = { width: Math.max(1, Math.round(share * source.width)),
                 height: Math.max(1, Math.round(share * source.height)) };
  const canvas = Object.assign(document.createElement("canvas"), size);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, size.width, size.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, size.width, size.height);
  const four = context.getImageData(0, 0, size.width, size.height).data;
  const pixels = new Uint8Array(3 * size.width * size.height);
  for (let at = 0; at < size.width * size.height; at++)
    for (let colour = 0; colour < 3; colour++) pixels[3 * at + colour] = four[4 * at + colour];
  return { pixels, size };
}

// Pixels (width x height) with their rows, or else their columns, made `count` long. Each new pixel is a mean with the
// weights of a cubic, over twice as many old ones as it stands for, each way: so none between them is left out.
function resized(pixels, width, height, count, alongRows) {
  const [length, lines] = alongRows ? [width, height] : [height, width];
  if (count == length) return pixels;
  const from = alongRows ? { step: 1, line: width } : { step: width, line: 1 };
  const to = alongRows ? { step: 1, line: count } : from;
  const result = new Uint8Array(3 * lines * count), ratio = length / count, reach = Math.max(ratio, 1);
  for (let place = 0; place < count; place++) {
    const centre = (place + 0.5) * ratio;
    const first = Math.max(0, Math.floor(centre - 2 * reach + 0.5));
    const last = Math.min(length, Math.floor(centre + 2 * reach + 0.5));
    const weights = Array.from({ length: last - first }, (_, at) => cubic((first + at - centre + 0.5) / reach));
    const sum = weights.reduce((total, weight) => total + weight);
    for (let line = 0; line < lines; line++)
      for (let colour = 0; colour < 3; colour++) {
        let at = 3 * (line * from.line + first * from.step) + colour, total = 0;
        for (const weight of weights) {
          total += weight * pixels[at];
          at += 3 * from.step;
        }
        result[3 * (line * to.line + place * to.step) + colour] = within(Math.round(total / sum), 0, 255);
      }
  }
  return result;
}

// Keys' cubic: 1 at 0, smooth, 0 from 2 on.
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// In the middle of width x height pixels; beside it its border's median.
function padded(pixels, inner, width, height) {
  if (inner.width == width && inner.height == height) return pixels;
  const border = [];
  for (let column = 0; column < inner.width; column++) border.push(column, (inner.height - 1) * inner.width + column);
  for (let row = 0; row < inner.height; row++) border.push(row * inner.width, (row + 1) * inner.width - 1);
  const paper = [0, 1, 2].map(colour => median(border.map(at => pixels[3 * at + colour])));
  const result = new Uint8Array(3 * width * height);
  result.forEach((_, at) => { result[at] = paper[at % 3]; });
  const down = Math.floor((height - inner.height) / 2), right = Math.floor((width - inner.width) / 2);
  for (let row = 0; row < inner.height; row++)
    result.set(pixels.subarray(3 * row * inner.width, 3 * (row + 1) * inner.width),
               3 * ((row + down) * width + right));
  return result;
}

function median(numbers) {
  const sorted = numbers.sort((a, b) => a - b), middle = sorted.length / 2;  // there is an even number of them
  return Math.floor((sorted[middle - 1] + sorted[middle]) / 2);
}

// As Python rounds: a half goes to the even neighbour.
function roundedToEven(number) {
  const down = Math.floor(number);
  return number - down == 0.5 ? down + down % 2 : Math.round(number);
}
