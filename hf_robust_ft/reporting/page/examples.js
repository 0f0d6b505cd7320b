// The viewer of adversarial examples: image, image under attack, and their difference as strong as one likes.
"use strict";

(() => {
  const element = document.getElementById("examples");
  if (!element) return;
  const groups = JSON.parse(document.getElementById("data").textContent).examples;
  const find = (id) => document.getElementById(id);
  const slider = find("amplification");
  let [group, position] = [groups[0], 0];

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  /** Write an image of `value(i)`, in [0, 1], for each of its height x width x 3 values. */
  function paint(canvas, { height, width }, value) {
    [canvas.width, canvas.height] = [width, height];
    canvas.classList.toggle("small", width < 128);
    const image = new ImageData(width, height);
    for (let pixel = 0; pixel < width * height; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        image.data[4 * pixel + channel] = Math.round(255 * Math.min(Math.max(value(3 * pixel + channel), 0), 1));
      }
      image.data[4 * pixel + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  /** From 1 to the factor at which the largest change fills the range of the picture. */
  function factor(largest) {
    const most = Math.max(0.5 / largest, 1);
    return most ** (Number(slider.value) / 100);
  }

  function show() {
    const example = group.images[position];
    const clean = bytes(example.clean);
    const difference = new Int8Array(bytes(example.difference).buffer);
    const change = (i) => (difference[i] / 127) * example.largest;
    const strength = example.largest > 0 ? factor(example.largest) : 1;
    paint(find("clean"), example, (i) => clean[i] / 255);
    paint(find("adversarial"), example, (i) => clean[i] / 255 + change(i));
    paint(find("difference"), example, (i) => 0.5 + strength * change(i));
    find("clean-caption").textContent = example.before;
    find("adversarial-caption").textContent = example.after;
    find("difference-caption").textContent = `largest ${example.largestLabel}`;
    find("example-number").textContent = `${position + 1} of ${group.images.length}`;
    const told = `× ${strength < 10 ? strength.toFixed(1) : Math.round(strength)}`;
    find("amplification-value").textContent = told;
    slider.setAttribute("aria-valuetext", told);
    for (const id of ["clean", "adversarial", "difference"]) {
      const caption = find(`${id}-caption`).textContent;
      find(id).setAttribute("role", "img");
      find(id).setAttribute("aria-label", id === "difference" ? `Difference amplified ${told}, ${caption}` : caption);
    }
  }

  function turn(by) {
    position = (position + by + group.images.length) % group.images.length;
    show();
  }

  find("previous-example").addEventListener("click", () => turn(-1));
  find("next-example").addEventListener("click", () => turn(1));
  slider.addEventListener("input", show);
  const menu = find("example-run");
  if (menu) {
    menu.addEventListener("change", () => {
      [group, position] = [groups[menu.value], 0];
      show();
    });
  }
  show();
})();
