// Shows `data.tiles` as a grid of images; a click sends the tile's value to Python as `pick`.
// Called again whenever the data changes. Tiles are reused, so that keyboard focus stays.
//
// A pick is a state value, not a trigger: of two triggers in quick succession, Streamlit may drop
// the later one. The time makes two clicks on the same tile two picks.

export default function ({ data, parentElement, setStateValue }) {
  const list = parentElement.querySelector("ul");
  list.setAttribute("aria-label", data.label);
  list.className = data.look;

  data.tiles.forEach((tile, position) => {
    const item = list.children[position] ?? list.appendChild(newItem());
    const [button, copy] = item.children;
    item.style.setProperty("--ratio", tile.ratio);
    fill(button, tile, data.testId);
    button.onclick = () => {
      for (const other of list.querySelectorAll("[aria-pressed]")) {
        other.setAttribute("aria-pressed", other === button);
      }
      setStateValue("pick", { value: tile.value, time: performance.now() });
    };
    copy.hidden = !tile.path;
    copy.title = tile.path;
    copy.setAttribute("aria-label", `Copy the path ${tile.path}`);
    copy.onclick = () => copyText(copy, tile.path);
  });
  while (list.children.length > data.tiles.length) list.lastElementChild.remove();
}

function newItem() {
  const item = document.createElement("li");
  item.innerHTML =
    '<button type="button" class="pick"><span class="image"><img><span class="badge"></span>' +
    '</span><span class="caption"></span></button>' +
    '<button type="button" class="copy" hidden>Copy path</button>';
  return item;
}

function fill(button, tile, testId) {
  button.dataset.testid = testId;
  button.dataset.value = tile.value;
  button.setAttribute("aria-label", tile.name);
  if (tile.picked !== null) button.setAttribute("aria-pressed", tile.picked);
  button.title = tile.name;
  const image = button.querySelector("img");
  if (image.getAttribute("src") !== tile.source) image.src = tile.source;
  image.alt = tile.name;
  button.querySelector(".badge").textContent = tile.badge;
  button.querySelector(".caption").replaceChildren(
    ...tile.lines.map(({ text, look }) => {
      const line = document.createElement("span");
      line.className = look;
      line.textContent = text;
      return line;
    }),
  );
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers give pages without TLS no clipboard, except those of this machine.
    window.prompt("Path", text);
    return;
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy path"), 1500);
}
