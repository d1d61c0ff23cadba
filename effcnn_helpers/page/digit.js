// From a drawing to an image like MNIST's. Its makers scaled each digit into a box of 20 x 20 pixels, kept its aspect
// ratio, and moved its centre of mass to the middle of 28 x 28 pixels. The network knows no other digits.

const FIELD = 28, BOX = 20, MIDDLE = 14;  // MNIST's centres of mass are less than half a pixel from (14, 14)

// The image of a drawing: `side` x `side` numbers from 0 (paper) to 1 (ink). Null without ink.
// Also what was done: the drawing's box and centre of mass, in its own pixels, and the box in the image.
function prepare(ink, side) {
  const box = boxAround(ink, side);
  if (!box) return null;
  const scale = BOX / Math.max(box.width, box.height);
  const width = Math.max(1, Math.round(scale * box.width)), height = Math.max(1, Math.round(scale * box.height));
  const small = shrink(ink, side, box, width, height);
  const centre = centreOfMass(small, width, height);
  // Whole pixels, as MNIST. The box stays inside the field, however far out the centre is.
  const left = within(Math.round(MIDDLE - centre.x), 0, FIELD - width);
  const top = within(Math.round(MIDDLE - centre.y), 0, FIELD - height);
  const image = new Float32Array(FIELD * FIELD);
  small.forEach((value, at) => {
    image[(top + Math.floor(at / width)) * FIELD + left + at % width] = Math.round(255 * value);
  });
  return {
    image, box, boxInImage: { left, top, width, height },
    centre: { x: box.left + (centre.x + 0.5) * box.width / width, y: box.top + (centre.y + 0.5) * box.height / height },
  };
}

// The smallest box that holds all ink, or null.
function boxAround(ink, side) {
  let left = side, right = -1, top = side, bottom = -1;
  for (let row = 0, at = 0; row < side; row++)
    for (let column = 0; column < side; column++, at++)
      if (ink[at] > 0) {
        left = Math.min(left, column);
        right = Math.max(right, column);
        top = Math.min(top, row);
        bottom = row;
      }
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

// The box as width x height pixels. Each is the mean of the ink that it covers, so that edges become grey.
function shrink(ink, side, box, width, height) {
  const columns = overlaps(box.left, box.width, width), rows = overlaps(box.top, box.height, height);
  const small = new Float32Array(width * height);
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      let sum = 0;
      for (const [y, part] of rows[row])
        for (const [x, share] of columns[column]) sum += part * share * ink[y * side + x];
      small[row * width + column] = sum;
    }
  return small;
}

// `size` pixels from `start` on, cut into `parts` equal parts: for each, the pixels in it and their shares of it.
function overlaps(start, size, parts) {
  const length = size / parts;
  return Array.from({ length: parts }, (_, part) => {
    const from = part * length, to = from + length, shares = [];
    for (let pixel = Math.floor(from); pixel < Math.min(size, to); pixel++) {
      const share = (Math.min(to, pixel + 1) - Math.max(from, pixel)) / length;
      if (share > 0) shares.push([start + pixel, share]);
    }
    return shares;
  });
}

function centreOfMass(image, width, height) {
  let mass = 0, x = 0, y = 0;
  for (let at = 0; at < width * height; at++) {
    mass += image[at];
    x += image[at] * (at % width);
    y += image[at] * Math.floor(at / width);
  }
  return { x: x / mass, y: y / mass };
}

// The image moved by whole pixels; what comes in is paper.
function moved(image, right, down) {
  const result = new Float32Array(FIELD * FIELD);
  for (let row = 0; row < FIELD; row++)
    for (let column = 0; column < FIELD; column++) {
      const y = row - down, x = column - right;
      if (y >= 0 && y < FIELD && x >= 0 && x < FIELD) result[row * FIELD + column] = image[y * FIELD + x];
    }
  return result;
}
