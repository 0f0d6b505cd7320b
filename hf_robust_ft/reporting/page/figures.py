"""The page's charts as Plotly figures; the colours of text, grid and ground follow the theme and stand in page.css."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.reporting.measures import ACCURACY, Measure

try:
    from plotly.graph_objects import Figure
    from plotly.offline import get_plotlyjs  # noqa: F401 (for `render`: what is missing is said once)
except ImportError:
    raise ImportError("The page's charts need Plotly, which is missing: pip install 'hf_robust_ft[report]'.") from None

COLOURS = ("#1f86c9", "#d9640d", "#0f9470", "#c25f97", "#9c7413", "#6d7ddb")  # seen on a light and on a dark ground
MARKS = {  # the symbols as paths about 0, 0, for legends
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "diamond": "M0-5L5 0L0 5L-5 0Z",
    "square": "M-4-4H4V4H-4Z",
    "triangle-up": "M0-5L5 4H-5Z",
    "cross": "M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
    "x": "M-4.7-2.3L-2.3-4.7L0-2.4L2.3-4.7L4.7-2.3L2.4 0L4.7 2.3L2.3 4.7L0 2.4L-2.3 4.7L-4.7 2.3L-2.4 0Z",
}
SYMBOLS = tuple(MARKS)  # colours alone are not told apart by everybody
DASHES = (("solid", ""), ("dash", "6 4"), ("dot", "2 3"))  # Plotly's names, and as lengths
CHOSEN = "#2e87d6"
MOST_STEPS = 1000  # of a staircase
LONGEST = 18  # characters of a class on the axis
ORDERS = {"worst first": "mean ascending", "as in the report": "trace"}

Shown = dict[str, Any]  # a run as `render` describes it


def style_of(index: int) -> dict[str, Any]:
    """Line and symbol of the page's run of this number, and both for a legend: its dash as lengths, its mark's path."""
    turn, place = divmod(index, len(COLOURS))
    dash, lengths = DASHES[turn % len(DASHES)]
    line = {"color": COLOURS[place], "width": 2.5, "dash": dash}
    symbol = SYMBOLS[place]
    return {"line": line, "symbol": symbol + ("-open" if turn else ""), "lengths": lengths, "mark": MARKS[symbol]}


def unit_of(norm: str) -> tuple[float, str, str]:
    """In what eps is drawn: its size, what follows the axis' title, and what follows a value."""
    return (1 / 255, " (1/255)", "/255") if norm == "Linf" else (1.0, "", "")


def curves(norm: str, runs: Sequence[Shown], measure: Measure = ACCURACY) -> dict[str, Any]:
    """The measure over eps; measured by the protocol "exact", the curve between the points is a staircase.

    Values can be read also at the points of other runs' grids. The two shapes mark the eps chosen.
    """
    unit, title, suffix = unit_of(norm)
    every = sorted({eps for run in runs for eps in run["report"].epsilons})
    largest = every[-1] / unit
    figure = _figure(f"{norm} budget eps{title}", f"{measure.name} (%)", f"eps %{{x:.4~g}}{suffix}")
    for run in runs:
        report, line = run["report"], run["style"]["line"]
        bands = measure.intervals(report)
        if bands:
            x, y = [*bands, *reversed(bands)], [high for _, high in bands.values()]
            y += [low for low, _ in reversed(bands.values())]
            filled = {"fill": "toself", "fillcolor": f"{line['color']}24", "mode": "lines", "line_width": 0}
            figure.add_scatter(x=_in(unit, x), y=_in(0.01, y), meta=run["name"], hoverinfo="skip", **filled)
        is_exact = report.protocol == "exact"
        if is_exact:
            x = _steps(report)
            stairs = {"y": _in(0.01, measure.at(report, x)), "mode": "lines", "line": line | {"shape": "hv"}}
            figure.add_scatter(x=_in(unit, x), meta=run["name"], hoverinfo="skip", **stairs)
        x = [eps for eps in every if eps <= report.epsilons[-1]]
        figure.add_scatter(
            x=_in(unit, x),
            y=_in(0.01, measure.at(report, x)),
            meta=run["name"],
            name=_text(run["name"]) + ("" if run["reliability"]["verdict"] == "ok" else " (doubtful)"),
            mode="markers" if is_exact else "lines+markers",
            line=line,
            marker={"color": line["color"], "opacity": 1, "symbol": run["style"]["symbol"]},
            marker_size=[8 if eps in report.epsilons else 0 for eps in x],
            customdata=["  ({:.1f} to {:.1f})".format(*_in(0.01, bands[eps])) if eps in bands else "" for eps in x],
            hovertemplate="%{y:.1f} %%{customdata}",
        )
    figure.update_xaxes(range=[-0.015 * largest, 1.015 * largest])  # room for whole markers
    figure.add_vrect(0, largest, fillcolor=CHOSEN, opacity=0.08, line_width=0)
    figure.add_vline(largest, line_color=CHOSEN, line_width=2)
    figure.update_shapes(layer="between", yref="paper")  # above the grid, below the curves
    return figure.to_dict()


def timeline(norm: str, runs: Sequence[Shown], measure: Measure = ACCURACY) -> dict[str, Any]:
    """The measure on validation images by epoch over the eps trained at."""
    unit, title, suffix = unit_of(norm)
    series = {
        "clean": ({"dash": "solid"}, 0.01, "y", "%{y:.1f} %"),
        "adversarial": ({"dash": "dash"}, 0.01, "y", "%{y:.1f} %"),
        "eps": ({"shape": "vh"}, unit, "y2", f"%{{y:.4~g}}{suffix}"),
    }
    figure = _figure("epoch", f"{measure.name} (%)", "epoch %{x:.3~g}")
    for run in runs:
        for key, (look, scale, axis, hover) in series.items():
            points = getattr(run["timeline"], key)
            figure.add_scatter(
                x=[epoch for epoch, _ in points],
                y=_in(scale, (value for _, value in points)),
                meta=run["name"],
                name=f"{_text(run['name'])}, {key}",
                mode="lines" if len(points) > 1 else "markers",
                line=run["style"]["line"] | look,
                yaxis=axis,
                hovertemplate=hover,
            )
    figure.update_layout(hoversubplots="axis", xaxis={"anchor": "y2", "rangemode": "tozero"}, yaxis_domain=[0.36, 1])
    figure.layout.yaxis2 = {"title": f"eps{title}", "rangemode": "tozero", "domain": [0, 0.28], "automargin": True}
    return figure.to_dict()


def by_class(
    runs: Sequence[Shown], scores: Mapping[str, str], counted: tuple[str, str]
) -> tuple[dict[str, Any], dict[str, dict[str, list]]]:
    """One score by class, a dot a run; and menus of other scores and orders, each choice Plotly's arguments for it.

    Args:
        scores: the key in a report's row of each score, the one shown at first before others.
        counted: the key of what a class has many of, and its name.
    """
    key, word = counted
    first = next(iter(scores))
    tables = {run["name"]: run["report"].per_class for run in runs}
    shares = {
        score: [_in(0.01, (row[name] for row in table)) for table in tables.values()] for score, name in scores.items()
    }
    figure = _figure(f"{first} (%)", "")
    for run, table, x in zip(runs, tables.values(), shares[first], strict=True):
        figure.add_scatter(
            x=x,
            y=[row["class"] for row in table],
            customdata=[[_text(row["class"]), row[key]] for row in table],
            meta=run["name"],
            name=_text(run["name"]),
            mode="markers",
            cliponaxis=False,
            marker={"size": 10, "color": run["style"]["line"]["color"], "symbol": run["style"]["symbol"]},
            hovertemplate=f"%{{customdata[0]}}: %{{x:.1f}} % of %{{customdata[1]}} {word}",
        )
    names = [row["class"] for row in tables[runs[0]["name"]]]
    short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}" for name in names]
    figure.update_layout(hovermode="closest", height=70 + 26 * len(names), xaxis_range=[-2, 102])
    figure.update_yaxes(
        type="category",  # also where classes are called 0 to 9
        categoryorder="mean ascending",
        tickvals=names,
        ticktext=[_text(name) for name in short],
        range=[len(names) - 0.4, -0.6],
    )
    return figure.to_dict(), {
        "score": {score: [{"x": x}, {"xaxis.title.text": f"{score} (%)"}] for score, x in shares.items()},
        "order": {label: [{}, {"yaxis.categoryorder": order}] for label, order in ORDERS.items()},
    }


def _figure(x: str, y: str, told: str | None = None) -> Figure:
    """With titles of the axes, and what stands above the values `told` under the pointer."""
    clear = "rgba(0, 0, 0, 0)"
    return Figure(
        layout={
            "template": {},
            "paper_bgcolor": clear,
            "plot_bgcolor": clear,
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "showlegend": False,
            "hovermode": "x unified",
            "xaxis": {"title": x, "automargin": True, "spikethickness": 1, "unifiedhovertitle": {"text": told}},
            "yaxis": {"title": y, "automargin": True, "range": [0, 102]},
        }
    )


def _in(unit: float, values: Iterable[float]) -> list[float]:
    return [value / unit for value in values]


def _text(name: str) -> str:
    """Plotly reads some markup in names."""
    return escape(name, quote=False)


def _steps(report: RobustnessReport) -> list[float]:
    """Where a staircase falls: at each image's smallest fooling eps, or evenly where these are too many to draw."""
    end = report.epsilons[-1]
    falls = {eps for eps in report.smallest_epsilons if eps is not None and eps <= end}
    return sorted({0.0, *(falls if len(falls) <= MOST_STEPS else np.linspace(0, end, MOST_STEPS + 1).tolist()), end})
