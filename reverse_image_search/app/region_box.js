// An image with a box on it, in percent of its sides: [left, top, right, bottom]. Dragging draws a
// new box; arrow keys move it, with Shift they resize it, and Escape removes it.

const WHOLE = [0, 0, 100, 100];
const SMALLEST = 4; // percent; a click is not a box

export default function ({ data, parentElement, setStateValue }) {
  const frame = parentElement.querySelector(".frame");
  const image = frame.querySelector("img");
  if (image.getAttribute("src") !== data.source) image.src = data.source;
  image.alt = frame.ariaLabel = data.label;
  let box = data.box ?? WHOLE;
  let timer;

  const show = (next) => {
    box = next.map((side) => Math.round(Math.min(100, Math.max(0, side))));
    const [left, top, right, bottom] = box;
    frame.querySelector(".box").style.inset = `${top}% ${100 - right}% ${100 - bottom}% ${left}%`;
    const isWhole = box.join() === WHOLE.join();
    frame.ariaDescription = isWhole
      ? "The whole image"
      : `From ${left} to ${right} % across, ${top} to ${bottom} % down`;
  };
  const send = () => setStateValue("drawn", { box, time: performance.now() });
  const position = (event) => {
    const area = frame.getBoundingClientRect();
    const x = (100 * (event.clientX - area.left)) / area.width;
    const y = (100 * (event.clientY - area.top)) / area.height;
    return [x, y];
  };

  frame.onpointerdown = (event) => {
    const [x0, y0] = position(event);
    frame.setPointerCapture(event.pointerId);
    frame.onpointermove = (move) => {
      const [x, y] = position(move);
      show([Math.min(x0, x), Math.min(y0, y), Math.max(x0, x), Math.max(y0, y)]);
    };
    frame.onpointerup = frame.onpointercancel = () => {
      frame.onpointermove = frame.onpointerup = frame.onpointercancel = null;
      if (Math.min(box[2] - box[0], box[3] - box[1]) < SMALLEST) show(WHOLE);
      send();
    };
    show([x0, y0, x0, y0]);
  };
  frame.onkeydown = (event) => {
    const steps = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] };
    const [dx, dy] = steps[event.key] ?? [0, 0];
    const [left, top, right, bottom] = box;
    if (event.key === "Escape") show(WHOLE);
    else if (!dx && !dy) return;
    else if (event.shiftKey) {
      show([left, top, Math.max(left + SMALLEST, right + dx), Math.max(top + SMALLEST, bottom + dy)]);
    } else if (left + dx >= 0 && right + dx <= 100 && top + dy >= 0 && bottom + dy <= 100) {
      show([left + dx, top + dy, right + dx, bottom + dy]);
    }
    event.preventDefault();
    clearTimeout(timer);
    timer = setTimeout(send, 300); // once the key is let go
  };
  show(box);
}
