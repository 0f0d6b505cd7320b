// The charts: each function gives Plotly's traces and layout for what is shown; page.js draws them.
"use strict";

const Charts = {
  // No bar of buttons over the lines: a drag zooms, a double click goes back.
  config: { displayModeBar: false, responsive: true },

  /** A colour of page.css as the theme has it. */
  colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  },

  /** The run's colour at an opacity. */
  faint(run, opacity) {
    const digits = Charts.colour(`run-${run.colour}`).slice(1);
    const [red, green, blue] = [0, 2, 4].map((start) => parseInt(digits.slice(start, start + 2), 16));
    return `rgba(${red}, ${green}, ${blue}, ${opacity})`;
  },

  /** Plotly reads some markup in names, so they are escaped for it as well. */
  text(name) {
    return name.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  },

  layout(changes) {
    const line = Charts.colour("line");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const narrow = window.innerWidth < 640;
    const { xaxis, yaxis, yaxis2, ...rest } = changes;
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: Charts.colour("text"), family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13 },
      hoverlabel: {
        bgcolor: Charts.colour("surface"),
        bordercolor: line,
        font: { color: Charts.colour("text") },
        namelength: narrow ? 14 : 40,
      },
      margin: { l: 8, r: 12, t: 8, b: 8 },
      showlegend: false,
      // On a touch screen a drag scrolls the page.
      dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: { ...axis, spikecolor: Charts.colour("muted"), spikethickness: 1, ...xaxis },
      yaxis: { ...axis, ...yaxis },
      ...(yaxis2 ? { yaxis2: { ...axis, ...yaxis2 } } : {}),
      ...rest,
    };
  },

  /** Accuracy over eps with its band; measured by the protocol "exact", the curve between the points is a staircase. */
  curves(group, runs) {
    const traces = [];
    const told = [...new Set(runs.flatMap((run) => run.epsilons))].sort((a, b) => a - b);
    for (const run of runs) {
      const x = run.epsilons.map((eps) => eps / group.unit);
      if (run.bands.length) {
        const [low, high] = [0, 1].map((side) => run.bands.map((band) => 100 * band[side]));
        traces.push({
          x: [...x, ...[...x].reverse()],
          y: [...high, ...low.reverse()],
          fill: "toself",
          fillcolor: Charts.faint(run, 0.14),
          line: { width: 0 },
          hoverinfo: "skip",
          mode: "lines",
        });
      }
      const line = { color: Charts.colour(`run-${run.colour}`), width: 2.5, dash: run.dash };
      if (run.smallest) {
        const steps = Charts.steps(run);
        traces.push({
          x: steps.map((eps) => eps / group.unit),
          y: steps.map((eps) => 100 * Robustness.accuracyAt(run, eps)),
          mode: "lines",
          line: { ...line, shape: "hv" },
          hoverinfo: "skip",
        });
      }
      traces.push(Charts.points(group, run, told, line));
    }
    const layout = Charts.layout({
      hovermode: "x unified",
      xaxis: {
        title: { text: `${group.norm} budget eps${group.unitName}` },
        range: [-0.015, 1.015].map((share) => (share * group.maxEps) / group.unit), // room for whole markers
        unifiedhovertitle: { text: `eps %{x:.4~g}${group.unitName ? "/255" : ""}` },
      },
      yaxis: { title: { text: "accuracy (%)" }, range: [0, 102] },
    });
    return { traces, layout };
  },

  /** The points of the run's grid, with values to read also at those of other runs' grids; joined if no staircase is. */
  points(group, run, epsilons, line) {
    const measured = epsilons.filter((eps) => Robustness.isMeasured(run, eps));
    const own = measured.map((eps) => run.epsilons.indexOf(eps));
    const interval = (band) => (band ? `  (${band.map((side) => (100 * side).toFixed(1)).join(" to ")})` : "");
    return {
      x: measured.map((eps) => eps / group.unit),
      y: measured.map((eps) => 100 * Robustness.accuracyAt(run, eps)),
      name: Charts.text(run.name) + (run.doubtful ? " (doubtful)" : ""),
      mode: run.smallest ? "markers" : "lines+markers",
      line,
      marker: { size: own.map((index) => (index < 0 ? 0 : 7)), color: line.color, opacity: 1, line: { width: 0 } },
      customdata: own.map((index) => interval(run.bands[index])),
      hovertemplate: "%{y:.1f} %%{customdata}",
    };
  },

  /** Where a staircase falls: at each image's smallest fooling eps, or at 1,000 points where there are more. */
  steps(run) {
    const end = run.epsilons[run.epsilons.length - 1];
    const falls = [...new Set(run.smallest)];
    const points = falls.length <= 1000 ? falls : Array.from({ length: 1001 }, (_, i) => (end * i) / 1000);
    return [...new Set([0, ...points.filter((eps) => eps <= end), end])];
  },

  /** The chosen eps: a line, and the range that expected robustness is a mean over. */
  chosenEps(group, eps) {
    const end = eps / group.unit;
    const common = { yref: "paper", y0: 0, y1: 1, layer: "between" }; // above the grid, below the curves
    return [
      { ...common, type: "rect", x0: 0, x1: end, fillcolor: Charts.colour("accent"), opacity: 0.07, line: { width: 0 } },
      { ...common, type: "line", x0: end, x1: end, line: { color: Charts.colour("accent"), width: 2 } },
    ];
  },

  /** Validation accuracy by epoch over the eps trained at. */
  timeline(group, runs) {
    const traces = [];
    for (const run of runs) {
      const line = { color: Charts.colour(`run-${run.colour}`), width: 2.5 };
      const series = [
        ["clean", "clean", { dash: "solid" }, 100, "y", "%{y:.1f} %"],
        ["adversarial", "adversarial", { dash: "dash" }, 100, "y", "%{y:.1f} %"],
        ["eps", "eps", { dash: run.dash, shape: "vh" }, 1 / group.unit, "y2", "%{y:.4~g}" + (group.unitName ? "/255" : "")],
      ];
      for (const [key, label, style, scale, yaxis, hovertemplate] of series) {
        const points = run.timeline[key] || [];
        if (!points.length) continue;
        traces.push({
          x: points.map(([epoch]) => epoch),
          y: points.map(([, value]) => scale * value),
          name: `${Charts.text(run.name)}, ${label}`,
          mode: points.length > 1 ? "lines" : "markers",
          line: { ...line, ...style },
          yaxis,
          hovertemplate,
        });
      }
    }
    const layout = Charts.layout({
      hovermode: "x unified",
      hoversubplots: "axis",
      xaxis: { title: { text: "epoch" }, anchor: "y2", rangemode: "tozero", unifiedhovertitle: { text: "epoch %{x:.3~g}" } },
      yaxis: { title: { text: "accuracy (%)" }, range: [0, 102], domain: [0.36, 1] },
      yaxis2: { title: { text: `eps${group.unitName}` }, rangemode: "tozero", domain: [0, 0.28] },
    });
    return { traces, layout };
  },

  /** One score by class, a dot a run; classes in the report's order, or with the lowest mean over the runs first. */
  byClass(runs, score, order) {
    const rows = new Map();
    for (const run of runs) {
      for (const row of run.perClass) rows.set(row.class, [...(rows.get(row.class) || []), row[score]]);
    }
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const names = [...rows.keys()];
    if (order === "worst") names.sort((a, b) => mean(rows.get(a)) - mean(rows.get(b)));
    const place = new Map(names.map((name, index) => [name, index]));
    const symbols = ["circle", "diamond", "square", "triangle-up", "cross", "x"];
    const traces = runs.map((run) => ({
      x: run.perClass.map((row) => 100 * row[score]),
      y: run.perClass.map((row) => place.get(row.class)),
      customdata: run.perClass.map((row) => [Charts.text(row.class), row.samples]),
      name: Charts.text(run.name),
      mode: "markers",
      cliponaxis: false,
      marker: { size: 10, color: Charts.colour(`run-${run.colour}`), symbol: symbols[run.colour] + (run.dash === "solid" ? "" : "-open") },
      hovertemplate: "%{customdata[0]}: %{x:.1f} % of %{customdata[1]} images",
    }));
    const short = (name) => (name.length > 18 ? `${name.slice(0, 17)}…` : name);
    const layout = Charts.layout({
      height: 70 + 26 * names.length,
      hovermode: "closest",
      xaxis: { title: { text: `${score.replace("_", " ")} (%)` }, range: [-2, 102], side: "bottom" },
      yaxis: {
        tickvals: names.map((_, index) => index),
        ticktext: names.map((name) => Charts.text(short(name))),
        range: [names.length - 0.4, -0.6],
      },
    });
    return { traces, layout };
  },
};
