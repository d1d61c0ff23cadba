// The page itself: the pen, the picture of each step, the answers.

const DIGITS = Array.from({ length: 10 }, (_, digit) => digit);
const SIDE = 560;    // of the drawing, in its own pixels
const PEN = 46;      // width of a line: about 3 pixels of 28 when the digit is as high as most people draw it
const KEY_STEP = 14; // how far an arrow key moves the pen
const NOTHING = "nothing drawn yet";
const SHIFT = 4;     // how far the sliders move the image, each way
const PLACES = Array.from({ length: 2 * SHIFT + 1 }, (_, at) => at - SHIFT);
const EXAMPLES = [   // a digit each: lines, as x and y in percent of the drawing
  [[66, 20, 40, 20, 37, 46, 52, 42, 65, 48, 69, 62, 62, 76, 48, 82, 34, 76]],
  [[30, 25, 42, 17, 57, 17, 66, 26, 64, 38, 52, 47, 46, 48, 58, 51, 68, 60, 67, 74, 55, 83, 40, 82, 29, 74]],
  [[27, 22, 45, 22, 72, 21, 65, 36, 56, 54, 49, 70, 45, 84]],
  [[44, 18, 37, 34, 32, 52, 46, 54, 72, 53], [62, 34, 60, 55, 57, 84]],
];

const networks = NETWORKS.map(unpack);
const pair = ["without", "with"].map((id, at) => ({ network: networks[at], ...answerIn(find(id), DIGITS),
                                                    ...placesIn(find(id)) }));
const answer = answerIn(find("answer"), DIGITS);
const pen = find("drawing").getContext("2d", { willReadFrequently: true });

let lines = [];        // of the drawing: each a list of points
let digit = null;      // what `prepare` made of them
let shown = null;      // the network that answers
let layers = [];       // its maps on the page
let times = [];        // of its last answers, in milliseconds
let wanted = false;    // whether the page is to be drawn anew
let resting = 0;       // a timer: what takes long is done when the pen rests

// The drawing

function draw() {
  pen.clearRect(0, 0, SIDE, SIDE);
  pen.strokeStyle = "#fff";
  pen.lineWidth = PEN;
  pen.lineCap = pen.lineJoin = "round";
  for (const line of lines) {
    pen.beginPath();
    trace(line);
    pen.stroke();
  }
  find("hint").hidden = lines.length > 0;
  later();
}

// A smooth curve: from the middle of two points to the middle of the next two.
function trace(line) {
  const last = line.at(-1);
  pen.moveTo(line[0].x, line[0].y);
  for (let at = 1; at < line.length - 1; at++) {
    const { x, y } = line[at], next = line[at + 1];
    pen.quadraticCurveTo(x, y, (x + next.x) / 2, (y + next.y) / 2);
  }
  pen.lineTo(last.x + 0.01, last.y);  // a dot is a very short line: not every browser draws one of length 0
}

function inkOf(context) {
  const pixels = context.getImageData(0, 0, SIDE, SIDE).data;
  const ink = new Float32Array(SIDE * SIDE);
  for (let at = 0; at < ink.length; at++) ink[at] = pixels[4 * at + 3] / 255;
  return ink;
}

function pointOf(event) {
  const around = find("drawing").getBoundingClientRect();
  return { x: (event.clientX - around.left) * SIDE / around.width,
           y: (event.clientY - around.top) * SIDE / around.height };
}

function listenToPointer(canvas) {
  let line = null, finger = null;
  canvas.addEventListener("pointerdown", event => {
    if (event.button || line) return;  // one finger draws at a time
    line = [pointOf(event)];
    finger = event.pointerId;
    lines.push(line);
    canvas.setPointerCapture(finger);
    draw();
  });
  canvas.addEventListener("pointermove", event => {
    if (!line || event.pointerId != finger) return;
    const events = event.getCoalescedEvents?.() ?? [];
    line.push(...(events.length ? events : [event]).map(pointOf));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, event => { if (event.pointerId == finger) line = null; });
}

function listenToKeys(canvas) {
  const at = { x: SIDE / 2, y: SIDE / 4 };
  const held = new Set();
  let line = null;
  const place = () => {
    find("pen").style.left = `${100 * at.x / SIDE}%`;
    find("pen").style.top = `${100 * at.y / SIDE}%`;
    find("pen").classList.toggle("down", line != null);
  };
  canvas.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key == " ") {
      line = line ? null : [{ ...at }];
      if (line) lines.push(line);
    } else if (event.key.startsWith("Arrow")) {
      held.add(event.key);  // two at a time draw a slope
      at.x = within(at.x + KEY_STEP * (held.has("ArrowRight") - held.has("ArrowLeft")), 0, SIDE);
      at.y = within(at.y + KEY_STEP * (held.has("ArrowDown") - held.has("ArrowUp")), 0, SIDE);
      if (line) line.push({ ...at });
    } else return;
    event.preventDefault();
    find("pen").hidden = false;
    place();
    draw();
  });
  canvas.addEventListener("keyup", event => held.delete(event.key));
  const lift = () => { line = null; held.clear(); find("pen").hidden = true; };
  canvas.addEventListener("blur", lift);
  canvas.addEventListener("pointerdown", lift);
  canvas.addEventListener("focus", () => { find("pen").hidden = !canvas.matches(":focus-visible"); place(); });
}

// The answers

function later() {
  if (!wanted) requestAnimationFrame(show);
  wanted = true;
  clearTimeout(resting);
  resting = setTimeout(whenTheDrawingRests, 250);
}

function show() {
  wanted = false;
  digit = prepare(inkOf(pen), SIDE);
  showImage(find("seen"), digit?.image);
  showStep();
  if (digit) {
    const start = performance.now();
    const logits = logitsOf(shown, digit.image);
    times = [...times.slice(-19), performance.now() - start];
    showAnswer(answer, softmax(logits));
  } else showAnswer(answer, null, NOTHING);
  layers.forEach(layer => showMaps(layer, digit));
  showFacts();
  showMoved();
}

// The box and the centre of mass, in the drawing and in the image.
function showStep() {
  const { box, centre, boxInImage } = digit ?? {};
  for (const [id, shape, at, size] of [["", box, centre, 14],
                                       ["-seen", boxInImage, { x: MIDDLE + 0.5, y: MIDDLE + 0.5 }, 0.7]]) {
    const rect = find(`box${id || ""}`), cross = find(`centre${id}`);
    for (const side of ["width", "height"]) rect.setAttribute(side, shape ? shape[side] : 0);
    rect.setAttribute("x", shape?.left ?? 0);
    rect.setAttribute("y", shape?.top ?? 0);
    cross.setAttribute("d", shape ? `M${at.x - size} ${at.y}h${2 * size}M${at.x} ${at.y - size}v${2 * size}` : "");
  }
}

// Squares for the answers at all shifts.
function placesIn(element) {
  const places = document.createElement("div");
  places.className = "places";
  places.setAttribute("role", "img");
  places.append(...PLACES.flatMap(() => PLACES.map(() => document.createElement("span"))));
  const kept = document.createElement("p");
  kept.className = "kept";
  element.append(places, kept);
  return { places, kept };
}

function showFacts() {
  find("facts").textContent = `${shown.parameters.toLocaleString("en")} parameters · ${shown.right} % of MNIST’s test `
    + `images right · ${shown.bytes.toLocaleString("en")} bytes of weights`;
  find("time").textContent = timeInWords(times);
}

// The moved image

function shift() {
  return { right: Number(find("right").value), down: Number(find("down").value) };
}

function showMoved() {
  const { right, down } = shift();
  find("right-by").textContent = pixels(right);
  find("down-by").textContent = pixels(down);
  const image = digit && moved(digit.image, right, down);
  showImage(find("shifted"), image);
  for (const side of pair) showAnswer(side, image && softmax(logitsOf(side.network, image)), NOTHING);
  markPlace();
}

function pixels(number) {
  return `${String(number).replace("-", "−")} pixel${Math.abs(number) == 1 ? "" : "s"}`;
}

function whenTheDrawingRests() {
  pair.forEach(showPlaces);
  find("said").textContent = digit ? `The answer is ${answer.best.textContent}` : "Nothing is drawn";
}

// 81 answers take too long for every movement of the pen. They come row by row, and stop when the drawing changes.
async function showPlaces({ network, places, kept }) {
  const asked = digit, answers = [];
  for (const down of asked ? PLACES : []) {
    for (const right of PLACES) answers.push(softmax(logitsOf(network, moved(asked.image, right, down))));
    await new Promise(resolve => setTimeout(resolve));
    if (digit != asked) return;
  }
  const classes = answers.map(indexOfLargest), middle = classes[(classes.length - 1) / 2];
  [...places.children].forEach((place, at) => {
    place.textContent = classes[at] ?? "";
    place.className = classes[at] == middle ? "" : "other";
    place.style.setProperty("--doubt", asked ? 1 - answers[at][middle] : 0);
  });
  const same = classes.filter(one => one == middle).length;
  kept.textContent = asked ? `The same answer at ${same} of ${classes.length} places` : "";
  places.setAttribute("aria-label", kept.textContent || "No answers yet");
  markPlace();
}

function markPlace() {
  const { right, down } = shift();
  const here = (down + SHIFT) * PLACES.length + right + SHIFT;
  for (const { places } of pair)
    [...places.children].forEach((place, at) => place.classList.toggle("here", at == here));
}

// Pictures

function showImage(canvas, image) {
  paint(canvas, image ?? new Float32Array(FIELD * FIELD), 0, 255);
}

// The start

function choose(network) {
  shown = network;
  times = [];
  layers = layersOf(network);
  later();
}

function listen() {
  listenToPointer(find("drawing"));
  listenToKeys(find("drawing"));
  let next = 0;
  find("clear").addEventListener("click", () => { lines = []; draw(); });
  find("undo").addEventListener("click", () => { lines.pop(); draw(); });
  find("example").addEventListener("click", () => {
    lines = EXAMPLES[next++ % EXAMPLES.length].map(line => line.flatMap((x, at) =>
      at % 2 ? [] : [{ x: x * SIDE / 100, y: line[at + 1] * SIDE / 100 }]));
    draw();
  });
  for (const id of ["right", "down"]) find(id).addEventListener("input", showMoved);
  networks.forEach((network, at) => {
    find("choice").insertAdjacentHTML("beforeend",
      `<label><input type="radio" name="network" autocomplete="off" ${at ? "" : "checked"}>${network.label}</label>`);
    find("choice").lastChild.addEventListener("change", () => choose(network));
  });
  fitFrame();
}

listen();
choose(networks[0]);
draw();
