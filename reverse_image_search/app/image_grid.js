// Shows `data.tiles` as a grid of images; a click sends the tile's value to Python as `pick`.
// Called again whenever the data changes. Tiles are reused, so that keyboard focus stays.
//
// A pick is a state value, not a trigger: of two triggers in quick succession, Streamlit may drop
// the later one. The time makes two clicks on the same tile two picks.

export default function ({ data, parentElement, setStateValue }) {
  const list = parentElement.querySelector("ul");
  list.setAttribute("aria-label", data.label);
  list.classList.toggle("adaptive", data.adaptive);

  data.tiles.forEach((tile, position) => {
    const item = list.children[position] ?? list.appendChild(newItem());
    fill(item.firstElementChild, tile, data.testId);
    item.firstElementChild.onclick = () => {
      for (const button of list.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", button === item.firstElementChild);
      }
      setStateValue("pick", { value: tile.value, time: performance.now() });
    };
  });
  while (list.children.length > data.tiles.length) list.lastElementChild.remove();
}

function newItem() {
  const item = document.createElement("li");
  item.innerHTML =
    '<button type="button"><span class="image"><img><span class="badge"></span></span>' +
    '<span class="caption"></span></button>';
  return item;
}

function fill(button, tile, testId) {
  button.dataset.testid = testId;
  button.dataset.value = tile.value;
  button.setAttribute("aria-label", tile.name);
  button.setAttribute("aria-pressed", tile.picked);
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
