// The page at work: draws the charts, follows slider, boxes, menus and theme.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const shown = (indices) => {
    const checked = new Set(all(".show:checked").map((box) => Number(box.value)));
    return indices.filter((index) => checked.has(index)).map((index) => data.runs[index]);
  };

  /** The eps of a tick; points of a grid are met exactly, not to a rounding error. */
  function epsOf(group, tick) {
    const eps = tick === group.ticks ? group.maxEps : (group.maxEps * tick) / group.ticks;
    const points = group.runs.flatMap((index) => data.runs[index].epsilons);
    const near = points.find((point) => Math.abs(point - eps) < 1e-9);
    return near === undefined ? eps : near;
  }

  function epsLabel(group, eps) {
    const written = Robustness.formatEps(eps);
    return !group.unitName || written.includes("/") || eps === 0 ? written : `${Number((eps * 255).toFixed(2))}/255`;
  }

  /** Where a slider stands, told in its output, the table below and the chart. */
  function showEps(section) {
    const group = data.groups[section.dataset.group];
    const slider = section.querySelector(".eps");
    const eps = epsOf(group, Number(slider.value));
    const label = epsLabel(group, eps);
    slider.setAttribute("aria-valuetext", `eps ${label}`);
    section.querySelector("output").textContent = label;
    for (const place of all(".at", section)) place.textContent = label;
    const menu = section.querySelector(".baseline");
    const baseline = menu && data.runs[menu.value];
    for (const row of all(".readout tbody tr", section)) {
      const run = data.runs[row.dataset.run];
      const expected = Robustness.expectedRobustness(run, eps);
      const isMeasured = expected !== null;
      const beyond = `not measured beyond ${run.setting.norm} ${run.epsLabel}`;
      row.querySelector(".accuracy").textContent = isMeasured ? percent(Robustness.accuracyAt(run, eps)) : "–";
      const cell = row.querySelector(".expected");
      cell.textContent = isMeasured ? percent(expected, 2) : beyond;
      cell.classList.toggle("refused", !isMeasured);
      cell.dataset.value = isMeasured ? expected : "";
      if (baseline) tellDifference(row.querySelector(".difference"), run, baseline, eps);
    }
    const chart = section.querySelector(".curves");
    if (chart.data) Plotly.relayout(chart, { shapes: Charts.chosenEps(group, eps) });
  }

  function tellDifference(cell, run, baseline, eps) {
    const [mine, theirs] = [run, baseline].map((each) => Robustness.expectedRobustness(each, eps));
    const apart = Robustness.differences(run, baseline, eps);
    const isRefused = run !== baseline && mine !== null && theirs !== null && apart.length > 0;
    cell.classList.toggle("refused", isRefused);
    if (run === baseline || mine === null || theirs === null) {
      cell.textContent = "–";
    } else if (isRefused) {
      cell.textContent = `not comparable: other ${apart.join(", ")}`;
    } else {
      const points = 100 * (mine - theirs);
      cell.textContent = `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(2)} points`;
    }
  }

  function draw(element, { traces, layout }) {
    return Plotly.react(element, traces, layout, Charts.config);
  }

  function drawCurves(section) {
    const group = data.groups[section.dataset.group];
    const made = Charts.curves(group, shown(group.runs));
    made.layout.shapes = Charts.chosenEps(group, epsOf(group, Number(section.querySelector(".eps").value)));
    draw(section.querySelector(".curves"), made);
  }

  function drawTimeline(element) {
    const group = data.groups[element.dataset.group];
    draw(element, Charts.timeline(group, shown(group.runs)));
  }

  function drawClasses(section) {
    const group = data.classGroups[section.dataset.classes];
    const [score, order] = [".score", ".order"].map((selector) => section.querySelector(selector).value);
    draw(section.querySelector(".by-class"), Charts.byClass(shown(group.runs), score, order));
  }

  function drawAll() {
    all(".group").forEach(drawCurves);
    all(".timeline").forEach(drawTimeline);
    all(".classes").forEach(drawClasses);
  }

  for (const section of all(".group")) {
    section.querySelector(".eps").addEventListener("input", () => showEps(section));
    const menu = section.querySelector(".baseline");
    if (menu) menu.addEventListener("change", () => showEps(section));
    showEps(section);
  }
  for (const section of all(".classes")) {
    for (const menu of all("select", section)) menu.addEventListener("change", () => drawClasses(section));
  }
  for (const box of all(".show")) box.addEventListener("change", drawAll);
  document.addEventListener("themechange", drawAll);
  drawAll();
})();
