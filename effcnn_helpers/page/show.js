// What a page shows of a network: its answer as bars, its maps layer by layer.

const WHITE = [255, 255, 255], BLUE = [48, 140, 255];

const find = id => document.getElementById(id);

// The places of an answer: the likeliest class in large letters, and a bar for each class.
function answerIn(element, classes) {
  const best = document.createElement("p");
  best.className = "best-class";
  const bars = document.createElement("ol");
  bars.className = "bars";
  for (const name of classes) {
    bars.insertAdjacentHTML("beforeend", '<li><span class="name"></span><span class="track"><span class="bar"></span>'
      + '</span><span class="share"></span></li>');
    bars.lastChild.firstChild.textContent = name;
  }
  element.append(best, bars);
  return { best, bars, classes };
}

// shares: a probability for each class; null when there is nothing to answer.
function showAnswer({ best, bars, classes }, shares, nothing) {
  const winner = shares ? indexOfLargest(shares) : -1;
  const note = document.createElement("small");
  note.textContent = shares ? percent(shares[winner]) : nothing;
  best.replaceChildren(...(shares ? [`${classes[winner]} `] : []), note);
  [...bars.children].forEach((row, at) => {
    row.className = at == winner ? "best" : "";
    row.querySelector(".bar").style.width = shares ? `${100 * shares[at]}%` : 0;
    row.querySelector(".share").textContent = shares?.[at] >= 0.005 ? percent(shares[at]) : "";
  });
}

function indexOfLargest(numbers) {
  return numbers.indexOf(Math.max(...numbers));
}

function percent(share) {
  return share >= 0.995 ? ">99 %" : `${Math.round(100 * share)} %`;
}

// How long an answer takes: the median of the last ones, in milliseconds.
function timeInWords(times) {
  const time = [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
  return times.length ? `An answer takes ${time.toFixed(time < 10 ? 1 : 0)} ms here.` : "";
}

// Numbers as pixels: white is `largest`, black 0, blue -largest.
function paint(canvas, numbers, from, largest) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  for (let at = 0; at < canvas.width * canvas.height; at++) {
    const part = numbers[from + at] / largest, colour = part > 0 ? WHITE : BLUE;
    for (let channel = 0; channel < 3; channel++) picture.data[4 * at + channel] = colour[channel] * Math.abs(part);
    picture.data[4 * at + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

const LAYER_KINDS = { conv: "convolution", depthwise: "depthwise convolution", maxpool: "max-pool",
                      mean: "mean of each map", affine: "BatchNorm or ReLU by itself", add: "sum of two branches",
                      scale: "maps times their gates", sigmoid: "gates (sigmoid)" };
const WITH_KERNEL = ["conv", "depthwise", "maxpool"];

// A row of small pictures for each step between image and logits.
function layersOf(network) {
  find("layers").replaceChildren();
  return network.steps.slice(1, -1).map(step => {
    const { maps, height, width } = step.to;
    const kind = step.kind == "depthwise" && step.name.startsWith("maxpool") ? "blur" : LAYER_KINDS[step.kind];
    const kernel = WITH_KERNEL.includes(step.kind) ? `${step.kernel.join(" × ")} ` : "";
    const row = document.createElement("div");
    row.className = "layer";
    row.innerHTML = `<p><strong>${step.name}</strong>${kernel}${kind}${step.relu ? ", ReLU" : ""}<br>`
      + `${maps} maps of ${height} × ${width}</p>`
      + `<div class="maps" role="img" aria-label="The maps of ${step.name}"></div>`;
    const canvases = Array.from({ length: maps }, () => document.createElement("canvas"));
    for (const canvas of canvases) {
      Object.assign(canvas, { width, height });
      row.lastChild.append(canvas);
    }
    find("layers").append(row);
    return { step, canvases };
  });
}

// isThere: whether there is an image; without one the maps are black.
function showMaps({ step, canvases }, isThere) {
  const size = step.to.height * step.to.width;
  const numbers = isThere ? step.result : new Float32Array(step.result.length);
  const largest = numbers.reduce((most, number) => Math.max(most, Math.abs(number)), 1e-9);
  canvases.forEach((canvas, at) => paint(canvas, numbers, at * size, largest));
}

function within(number, least, most) {
  return Math.min(most, Math.max(least, number));
}

// In a notebook the page is in a frame, which takes its height.
function fitFrame() {
  if (window.frameElement)
    new ResizeObserver(() => { window.frameElement.style.height = `${document.body.scrollHeight}px`; })
      .observe(document.body);
}
