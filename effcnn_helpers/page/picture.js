// A page for pictures: those to choose from, the one that is answered, whether this browser answers as PyTorch did.

const SAME = 1e-3;  // logits here and in PyTorch may differ by so much, in parts of the largest

const network = unpack(NETWORK);
const answer = answerIn(find("answer"), network.classes);
const layers = layersOf(network);

let image = null;  // the one that is answered
let times = [];    // of the last answers, in milliseconds

function show(button, chosen) {
  image = chosen;
  for (const other of find("gallery").children) other.setAttribute("aria-pressed", other == button);
  paintImage(find("seen"), image);
  const start = performance.now();
  const logits = logitsOf(network, image);
  times = [...times.slice(-19), performance.now() - start];
  showAnswer(answer, softmax(logits));
  layers.forEach(layer => showMaps(layer, true));
  find("time").textContent = timeInWords(times);
  find("said").textContent = `The answer is ${answer.best.textContent}`;
}

function paintImage(canvas, image) {
  const { maps, width, height } = network, size = width * height;
  Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  for (let at = 0; at < size; at++)
    picture.data.set([0, 1, 2].map(colour => image[maps == 1 ? at : colour * size + at]).concat(255), 4 * at);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// One more picture to choose from: `name` stands below it.
function offer(image, name, put) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  const caption = document.createElement("span");
  button.type = "button";
  button.title = caption.textContent = name;
  paintImage(canvas, image);
  button.append(canvas, caption);
  button.addEventListener("click", () => show(button, image));
  find("gallery")[put](button);
  return button;
}

// Files that were chosen, dropped or pasted. The last one is answered at once.
async function take(files) {
  for (const file of files) {
    try {
      const picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
      const image = fitted(picture, network);
      show(offer(image, file.name, "prepend"), image);
    } catch {
      find("said").textContent = `${file.name} is no picture that this browser can read`;
      showAnswer(answer, null, find("said").textContent);
    }
  }
}

function listen() {
  find("file").addEventListener("change", async event => {
    await take(event.target.files);
    event.target.value = "";  // so that the same file can be chosen again
  });
  document.addEventListener("paste", event => take(event.clipboardData.files));
  document.addEventListener("dragover", event => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
  for (const end of ["dragleave", "drop"])
    document.addEventListener(end, () => find("drop").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}

// The test images on the page: their answers here beside PyTorch's.
function compare(examples) {
  let same = 0;
  for (const { image, logits } of examples) {
    const found = logitsOf(network, image), largest = Math.max(...logits.map(Math.abs));
    same += logits.every((logit, at) => Math.abs(logit - found[at]) <= SAME * largest);
  }
  find("same").textContent = `${same} of the ${examples.length} test images on this page are answered here as in `
    + `PyTorch.${same < examples.length ? " So do not trust this page in this browser." : ""}`;
}

const examples = network.examples.map(({ pixels, label, logits }) =>
  ({ image: Float32Array.from(atob(pixels), letter => letter.charCodeAt(0)), label, logits }));
const buttons = examples.map(({ image, label }) => offer(image, label, "append"));
listen();
compare(examples);
show(buttons[0], examples[0].image);
fitFrame();
