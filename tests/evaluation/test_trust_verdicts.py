from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, summary, verdict


def test_what_to_do_is_said_only_where_a_check_fails():
    numbers = {"value": 0.02, "numbers": "the accuracy falls by 2 %", "advice": "use more steps"}
    good, bad = (verdict("converged", passed, **numbers) for passed in (True, False))
    assert good == TrustCheck("converged", True, 0.02, "More steps change little: the accuracy falls by 2 %.")
    told = "The attack stopped while its loss was still rising: the accuracy falls by 2 %; use more steps."
    assert bad == TrustCheck("converged", False, 0.02, told)


def test_summary_is_one_line_a_check():
    checks = [TrustCheck("gradients", True, 0.0, "Fine."), TrustCheck("converged", False, 0.1, "Not fine.")]
    assert summary(checks) == "ok   gradients: Fine.\nWARN converged: Not fine."
