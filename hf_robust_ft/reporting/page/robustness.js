// Accuracy and expected robustness of a run at any eps: the formulas of metrics/robustness/curve.py, for the slider.
// A run measured by the protocol "exact" brings `smallest`, the smallest fooling eps of each image, increasing and
// without the images that nothing fooled; any other brings the points of its curve alone.
"use strict";

const Robustness = {
  /** Share of images classified correctly at eps; null beyond the largest eps measured. */
  accuracyAt(run, eps) {
    if (!Robustness.isMeasured(run, eps)) return null;
    if (run.smallest) return 1 - Robustness.countUpTo(run.smallest, eps) / run.images;
    const { epsilons, accuracies } = run;
    const next = epsilons.findIndex((point) => point >= eps);
    if (next <= 0 || epsilons[next] === eps) return accuracies[Math.max(next, 0)];
    const share = (eps - epsilons[next - 1]) / (epsilons[next] - epsilons[next - 1]);
    return accuracies[next - 1] + share * (accuracies[next] - accuracies[next - 1]);
  },

  /** Mean accuracy over [0, eps], at 0 the clean accuracy; null beyond the largest eps measured. */
  expectedRobustness(run, eps) {
    if (!Robustness.isMeasured(run, eps)) return null;
    if (eps === 0) return Robustness.accuracyAt(run, 0);
    if (run.smallest) {
      const fooled = Robustness.countUpTo(run.smallest, eps);
      const withstood = run.smallest.slice(0, fooled).reduce((sum, value) => sum + value, 0);
      return (withstood / eps + (run.images - fooled)) / run.images;
    }
    // The trapezoid rule on the grid up to eps; the last piece may be a part of one, on the line between its ends.
    let area = 0;
    for (let i = 1; i < run.epsilons.length && run.epsilons[i - 1] < eps; i++) {
      const end = Math.min(run.epsilons[i], eps);
      const accuracy = Robustness.accuracyAt(run, end);
      area += ((run.accuracies[i - 1] + accuracy) / 2) * (end - run.epsilons[i - 1]);
    }
    return area / eps;
  },

  /** Whether a run was measured up to eps; the last tick of a slider may lie a rounding error above. */
  isMeasured(run, eps) {
    return eps <= run.epsilons[run.epsilons.length - 1];
  },

  /** How many of the increasing values are at most eps. */
  countUpTo(values, eps) {
    let low = 0;
    let high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] <= eps) low = middle + 1;
      else high = middle;
    }
    return low;
  },

  /** A radius as papers write it: threat_models.format_eps. */
  formatEps(eps) {
    const in255ths = Math.round(eps * 255);
    if (eps < 1 && Math.abs(eps * 255 - in255ths) <= Math.max(1e-6 * Math.max(eps * 255, in255ths), 1e-9)) {
      return in255ths === 0 ? "0" : `${in255ths}/255`;
    }
    return String(Number(eps.toPrecision(6)));
  },

  /** Why two runs cannot be compared up to eps, in words; empty if they can. */
  differences(first, second, eps) {
    const found = Object.keys(first.setting)
      .filter((name) => first.setting[name] !== second.setting[name])
      .map((name) => `${name} (${first.setting[name]}, ${second.setting[name]})`);
    const grids = [first, second].map((run) => run.epsilons.filter((point) => point <= eps).join());
    if (!first.smallest && !found.length && grids[0] !== grids[1]) found.push("grid of eps");
    return found;
  },
};
