// A network, one step after the other, in float32: what `lowering` makes of a PyTorch network, its BatchNorms folded
// into the convolutions. The maps of a layer lie in one Float32Array: map after map, in a map row after row.

const KINDS = { input: scaleMaps, affine: scaleMaps, conv: convolve, depthwise: convolve, maxpool: takeLargest,
                mean: takeMean, add: addBranches, scale: scaleByGates, sigmoid: squash };

// Gives each step its weights, out of all weights in base64, and a place for its result.
function unpack(network) {
  const bytes = Uint8Array.from(atob(network.weights), letter => letter.charCodeAt(0));
  const numbers = new Float32Array(bytes.buffer);
  let used = 0;
  const take = count => numbers.subarray(used, used += count);
  for (const step of network.steps) {
    step.weight = take(step.weights);
    step.bias = take(step.biases);
    step.result = new Float32Array(step.to.maps * step.to.height * step.to.width);
  }
  return network;
}

// The logits of an image of numbers from 0 to 255. Each step takes the result of an earlier one, or of two, and keeps
// its own until the next image.
function logitsOf(network, image) {
  const values = [image];
  for (const step of network.steps) {
    const y = step.result;
    KINDS[step.kind](step, values[step.x], y, values[step.by]);
    if (step.relu) y.forEach((value, at) => { if (value < 0) y[at] = 0; });
    values.push(y);
  }
  return Array.from(values.at(-1));
}

// Logits as probabilities. The largest logit is taken off first: exp of a large number would be infinite.
function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map(logit => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power);
  return powers.map(power => power / sum);
}

// Each map times its weight, plus its bias. So pixels become numbers with mean 0 and standard deviation 1.
function scaleMaps(step, x, y) {
  const size = step.to.height * step.to.width;
  for (let at = 0; at < y.length; at++) {
    const map = Math.floor(at / size);
    y[at] = x[at] * step.weight[map] + step.bias[map];
  }
}

// A residual block: the sum of two branches.
function addBranches(step, x, y, by) {
  scaleMaps(step, x.map((number, at) => number + by[at]), y);
}

// Squeeze-and-Excite: each map times its gate.
function scaleByGates(step, x, y, by) {
  const size = step.to.height * step.to.width;
  scaleMaps(step, x.map((number, at) => number * by[Math.floor(at / size)]), y);
}

function squash(step, x, y) {
  x.forEach((number, at) => { y[at] = 1 / (1 + Math.exp(-number)); });
}

// A convolution. Each new map is a sum over all maps of x or, depthwise, over the one with its own number.
function convolve(step, x, y) {
  const { from, to, kernel } = step;
  const size = to.height * to.width;
  let at = 0;
  for (let map = 0; map < to.maps; map++) {
    y.fill(step.bias[map], map * size, (map + 1) * size);
    const first = step.kind == "depthwise" ? map : 0;
    const last = step.kind == "depthwise" ? map : from.maps - 1;
    for (let source = first; source <= last; source++)
      for (let down = 0; down < kernel[0]; down++)
        for (let right = 0; right < kernel[1]; right++)
          addTap(step, x, source, y, map, down, right, step.weight[at++]);
  }
}

// Adds what one weight brings: to each pixel of y the weight times the pixel of x under this place of the kernel.
function addTap(step, x, source, y, map, down, right, weight) {
  const { from, to, stride } = step;
  const up = down - step.padding[0], left = right - step.padding[1];
  // Around x there are zeros. They add nothing, so the loops leave them out.
  const [firstRow, lastRow] = inside(up, stride[0], from.height, to.height);
  const [firstColumn, lastColumn] = inside(left, stride[1], from.width, to.width);
  for (let row = firstRow; row <= lastRow; row++) {
    let at = (source * from.height + row * stride[0] + up) * from.width + firstColumn * stride[1] + left;
    const start = (map * to.height + row) * to.width;
    for (let column = firstColumn; column <= lastColumn; column++, at += stride[1])
      y[start + column] += weight * x[at];
  }
}

// The first and the last of `count` places for which 0 <= place * stride + offset < size.
function inside(offset, stride, size, count) {
  return [Math.max(0, Math.ceil(-offset / stride)), Math.min(count - 1, Math.floor((size - 1 - offset) / stride))];
}

// A max-pool without padding.
function takeLargest(step, x, y) {
  const { from, to, kernel, stride } = step;
  let at = 0;
  for (let map = 0; map < to.maps; map++)
    for (let row = 0; row < to.height; row++)
      for (let column = 0; column < to.width; column++) {
        const corner = (map * from.height + row * stride[0]) * from.width + column * stride[1];
        let largest = -Infinity;
        for (let down = 0; down < kernel[0]; down++)
          for (let right = 0; right < kernel[1]; right++)
            largest = Math.max(largest, x[corner + down * from.width + right]);
        y[at++] = largest;
      }
}

// Global average pooling: one number a map.
function takeMean(step, x, y) {
  const size = step.from.height * step.from.width;
  for (let map = 0; map < y.length; map++) {
    let sum = 0;
    for (let at = map * size; at < (map + 1) * size; at++) sum += x[at];
    y[map] = sum / size;
  }
}
