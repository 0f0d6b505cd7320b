"""What card and page say of the objective: its name and weight, and that few attacks flatter MART."""

import dataclasses

import pytest
from page_runs import make_report

from hf_robust_ft.reporting import render_model_card
from hf_robust_ft.reporting.objective import objective_doubt, objective_text
from hf_robust_ft.reporting.page import figures
from hf_robust_ft.reporting.page.protocol_table import protocol_rows
from hf_robust_ft.reporting.page.render import render_page
from hf_robust_ft.reporting.page.runs import Run

MART, TRADES = {"objective": "mart", "objective_beta": 5.0}, {"objective": "trades", "objective_beta": 6.0}
WARNING = "**Warning.** This model was trained by MART, which attacks on cross-entropy flatter"


def trained(protocol="paper", **training):
    return make_report(protocol=protocol, training={"eps": "8/255", "eps_schedule": "hinge", **training})


def test_the_card_names_objective_and_weight():
    card = render_model_card(trained(**TRADES, attack_loss="kl"))
    assert "| objective | trades |" in card and "| objective_beta | 6.0 |" in card and "| attack_loss | kl |" in card
    assert "\n\n\n" not in card


def test_page_names_the_method_that_trains_modules_beside_the_model(make_args):
    ruled = {"batch_norm": "trainer", "twins_lambda": 1.0, "objective": "trades"}
    assert objective_text(make_args(**ruled).training_settings()) == "trades, beta 6, by TWINS, lambda 1"
    settings = make_args(autolora=True, autolora_rate="off").training_settings()
    assert objective_text(settings) == "AutoLoRA, rank 8, scale 6"
    assert objective_text(make_args().training_settings()) is None
    settings = make_args(objective="pmg_aft", awp_gamma=0.005).training_settings()
    assert objective_text(settings) == "pmg_aft, alpha 1, beta 1, AWP 0.005"
    assert objective_text(make_args(awp_gamma=0.005).training_settings()) == "at, AWP 0.005"


def test_mart_under_attacks_on_cross_entropy_alone_is_doubted():
    report = trained(**MART)
    card = render_model_card(report)
    assert WARNING in card.split("## Can these numbers be trusted?")[1].split("\n## ")[0] and "\n\n\n" not in card
    assert WARNING in render_model_card(dataclasses.replace(report, checks=[]))


@pytest.mark.parametrize(
    "report",
    [
        trained(),
        trained(**TRADES),
        make_report(),
        dataclasses.replace(trained(**MART), protocol="reliable"),
        dataclasses.replace(trained(**MART), autoattack_accuracy=0.2, autoattack_samples=60),
    ],
    ids=["at", "trades", "measured alone", "reliable", "autoattack"],
)
def test_nothing_else_is(report):
    assert objective_doubt(report) is None


def test_the_page_sets_objectives_beside_each_other():
    rows = {row["name"]: row["values"] for row in protocol_rows([trained(**MART), trained()])}
    assert rows["objective"] == ["mart, beta 5", ""]
    assert objective_text({}) is None and objective_text({"objective": "own"}) == "own"


def test_the_page_warns_as_the_card_does(monkeypatch):
    monkeypatch.setattr(figures, "get_plotlyjs", lambda: "const Plotly = {};")
    doubt = "trained by MART, which attacks on cross-entropy flatter"
    assert doubt in render_page([Run("a", trained(**MART))]) and doubt not in render_page([Run("a", trained(**TRADES))])
