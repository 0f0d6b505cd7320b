// The page at work: draws the figures, follows boxes, menus and sliders. What they tell was computed in Python.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const find = (id) => document.getElementById(id);
const on = (element, event, react) => element && element.addEventListener(event, react);

// Libraries lie in the page packed: it is 2 MB rather than 5.
for (const packed of all("script[type='application/gzip']")) {
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
}

const charts = all(".chart");
for (const chart of charts) {
  const { data, layout } = JSON.parse(chart.dataset.figure);
  // On a touch screen a drag scrolls the page; else it zooms, and a double click goes back.
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
  layout.hoverlabel = { namelength: innerWidth < 640 ? 14 : 40 };
  Plotly.newPlot(chart, data, layout, { displayModeBar: false, responsive: true });
}

// Boxes show and hide the traces of a run; each choice of a menu of classes brings its arguments of Plotly.
for (const box of all(".show")) {
  on(box, "change", () => {
    for (const chart of charts) {
      const mine = chart.data.flatMap((trace, index) => (trace.meta === box.value ? [index] : []));
      // "legendonly", with no legend, as Plotly cannot sort the classes of a trace that is not visible at all.
      if (mine.length) Plotly.restyle(chart, { visible: box.checked || "legendonly" }, mine);
    }
  });
}
for (const section of all(".classes")) {
  for (const menu of all("select", section)) {
    const chart = section.querySelector(".chart");
    on(menu, "change", () => Plotly.update(chart, ...JSON.parse(menu.selectedOptions[0].dataset.update)));
  }
}

// A slider over eps: each of its ticks brings what the table tells; differences are to the run that the menu names.
for (const group of all(".group")) {
  const { ticks, apart } = JSON.parse(group.dataset.slider);
  const [slider, menu] = [".eps", ".baseline"].map((selector) => group.querySelector(selector));

  const difference = (x, rows, index, baseline) => {
    const [mine, theirs] = [rows[index][2], rows[baseline][2]];
    if (index === baseline || mine === null || theirs === null) return "–";
    const [reason, start] = apart[index][baseline] || [];
    if (x >= start) return `not comparable: other ${reason}`;
    return `${mine < theirs ? "−" : "+"}${Math.abs(100 * (mine - theirs)).toFixed(2)} points`;
  };

  const tell = () => {
    const { label, x, rows } = ticks[slider.value];
    slider.setAttribute("aria-valuetext", `eps ${label}`);
    for (const place of all(".at", group)) place.textContent = label;
    all(".readout tbody tr", group).forEach((row, index) => {
      const texts = [...rows[index].slice(0, 2), difference(x, rows, index, menu ? menu.selectedIndex : 0)];
      all("td", row).forEach((cell, column) => {
        cell.textContent = texts[column];
        cell.classList.toggle("refused", texts[column].startsWith("not "));
      });
    });
    Plotly.relayout(group.querySelector(".curves"), { "shapes[0].x1": x, "shapes[1].x0": x, "shapes[1].x1": x });
  };
  on(slider, "input", tell);
  on(menu, "change", tell);
  tell();
}

// One example at a time, its difference from as it is to as strong as the picture's range allows.
if (find("examples")) {
  const [menu, slider] = [find("example-run"), find("amplification")];
  let position = 0;
  const show = () => {
    const mine = all(".pictures", all(".of-run")[menu ? menu.selectedIndex : 0]);
    position = (position + mine.length) % mine.length;
    const example = mine[position];
    for (const each of all(".pictures")) each.hidden = each !== example;
    // The picture holds the difference at 0.5 / largest, as bright as it gets; contrast is about its grey.
    const most = 0.5 / example.dataset.largest;
    const strength = Math.max(most, 1) ** (slider.value / 100);
    const told = `× ${strength < 10 ? strength.toFixed(1) : Math.round(strength)}`;
    example.querySelector(".difference").style.filter = `contrast(${strength / most})`;
    find("amplification-value").textContent = told;
    slider.setAttribute("aria-valuetext", told);
    find("example-number").textContent = `${position + 1} of ${mine.length}`;
  };
  const turn = (by) => () => show((position += by));
  on(find("previous-example"), "click", turn(-1));
  on(find("next-example"), "click", turn(1));
  on(menu, "change", () => show((position = 0)));
  on(slider, "input", show);
  show();
}
