"""The commands that show results to others, or check theirs: report, leaderboard, verify, publish, publish-metric."""

import sys
from collections.abc import Sequence

from hf_robust_ft.runs.command_parser import CommandParser, wants_all


def report(argv: Sequence[str]) -> None:
    """Make one interactive HTML page of several runs: curves, training, classes, adversarial examples, trust checks."""
    parser = CommandParser("hf-robust-ft report", description=report.__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="A folder with a robustness_report.json (of train, evaluate or quickstart), a folder of such folders, or "
        "a report file. Of a folder also the training log and the images of evaluate --save_examples are shown.",
    )
    parser.add_argument("--html", default="report.html", help="The page (default: report.html); all of it is one file.")
    parser.add_argument("--names", nargs="+", help="What to call the runs (default: their folders' names).")
    parser.add_argument("--title", default="Robustness report", help="Title of the page.")
    options = parser.parse_args(argv)
    from hf_robust_ft.reporting.page.assets import check_target, write_page
    from hf_robust_ft.reporting.page.render import render_page
    from hf_robust_ft.reporting.page.runs import read_runs

    check_target(options.html)
    runs = read_runs(options.runs, options.names)
    page = render_page(runs, options.title)
    write_page(page, options.html)
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    print(f"{options.html}: {count}, {len(page.encode()) / 1e6:.1f} MB. It opens in any browser.")


def leaderboard(argv: Sequence[str]) -> None:
    """Rank robust models by the reports and model cards of their repositories, each setting by itself."""
    parser = CommandParser("hf-robust-ft leaderboard", description=leaderboard.__doc__)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="Repository ids and local folders, or a folder of folders such as runs (default: every model on the Hub "
        "with the --tag).",
    )
    parser.add_argument("--tag", default="hf_robust_ft", help="Which models of the Hub (default: hf_robust_ft).")
    parser.add_argument("--limit", type=int, help="Read at most so many of them.")
    for name in ("norm", "eps", "protocol", "dataset", "task"):
        parser.add_argument(f"--{name}", help=f"Show results of this {name} only.")
    parser.add_argument(
        "--sort",
        default="expected_robustness",
        choices=("expected_robustness", "adversarial_accuracy", "clean_accuracy"),
        help="Score that ranks (default: expected_robustness).",
    )
    parser.add_argument(
        "--one_ranking", "--one-ranking", action="store_true", help="An error where the settings of the results differ."
    )
    parser.add_argument("--markdown", help="Write the rankings to this Markdown file.")
    parser.add_argument("--html", help="Write them to this HTML page.")
    options = parser.parse_args(argv)
    from huggingface_hub import HfApi

    from hf_robust_ft.attacks.threat_model import parse_eps
    from hf_robust_ft.hub.leaderboard import Leaderboard, read_sources, read_tagged, to_html, to_markdown
    from hf_robust_ft.reporting.page.assets import check_target, write_page
    from hf_robust_ft.runs.task_arguments import ALIASES

    if options.eps is not None:
        parse_eps(options.eps)  # before the Hub is asked
    files = [(options.markdown, to_markdown), (options.html, to_html)]
    for path, _ in files:
        if path:
            check_target(path)
    api = HfApi()
    found = read_sources(api, options.sources) if options.sources else read_tagged(api, options.tag, options.limit)
    wanted = {name: getattr(options, name) for name in ("norm", "eps", "protocol", "dataset")}
    wanted["task"] = ALIASES.get(options.task, options.task)
    board = Leaderboard.of(*found, sorted_by=options.sort, wanted=wanted, one_ranking=options.one_ranking)
    print(to_markdown(board), end="")
    for path, render in files:
        if path:
            write_page(render(board), path)


def verify(argv: Sequence[str]) -> None:
    """Check a report by its stored adversarial examples: runs the model on them and on the images, attacks nothing.

    Of masks, whose examples are not stored, all attacks run again.
    """
    parser = CommandParser("hf-robust-ft verify", description=verify.__doc__)
    parser.add_argument(
        "target",
        metavar="REPORT|FOLDER|REPO",
        help="A robustness_report.json, a folder that holds one (of evaluate --store_examples), or a repository's id.",
    )
    parser.add_argument("--revision", help="Branch, tag or commit of REPO.")
    parser.add_argument("--examples", metavar="DIR", help="The stored examples (default: those beside the report).")
    parser.add_argument("--model", help="The model (default: the checkpoint beside the report, or the one it names).")
    parser.add_argument("--dataset", help="The data (default: what the report names).")
    for name in ("model_revision", "architecture", "dataset_config", "dataset_revision", "image_column",
                 "label_column", "split"):  # fmt: skip
        parser.add_argument(f"--{name}", help="As in evaluate, where the report does not tell it.")
    for name in ("image_size", "max_eval_samples", "split_seed"):
        parser.add_argument(f"--{name}", type=int, help="As in evaluate, where the report does not tell it.")
    parser.add_argument("--batch_size", type=int, help="Images at a time (default: 64).")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is).")
    parser.add_argument("--skip_bad_images", action="store_true", help="As in evaluate.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run code that the model brings.")
    if not wants_all(argv):
        parser.show_only(["target", "revision", "examples", "model", "dataset", "batch_size", "device"])
    options = vars(parser.parse_args(argv))
    from hf_robust_ft.evaluation.reliability import reliability_sentence
    from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
    from hf_robust_ft.runs.verify import Overrides
    from hf_robust_ft.runs.verify import verify as run

    target = options.pop("target")
    measured, found = run(target, Overrides(**options))
    print("\n".join(map(str, found)))
    print(reliability_sentence(measured))
    failed = [each.name for each in found if not each.passed]
    if failed:
        sys.exit(f"hf-robust-ft verify: {target} does not hold: {', '.join(failed)}.")
    if isinstance(measured, SegmentationReport):
        print(
            "Verified: measured again, the figures are the same. What a stronger attack would find is not told by this."
        )
        return
    print(
        "Verified: each image that counts as fooled is. How many of the others a stronger attack would fool is not "
        "told by this."
    )


def publish(argv: Sequence[str]) -> None:
    """Put a checkpoint with its robustness report, pictures and card on the Hub, and compare what arrived."""
    parser = CommandParser("hf-robust-ft publish", description=publish.__doc__)
    parser.add_argument("folder", metavar="DIR", help="A checkpoint's folder, as train leaves it.")
    parser.add_argument("repo_id", metavar="REPO", help="OWNER/NAME, or a name of your own; created if need be.")
    parser.add_argument("--private", action="store_true", default=None, help="Create it private.")
    parser.add_argument("--revision", help="Branch to commit to, made if need be (default: main).")
    parser.add_argument("--pr", action="store_true", dest="create_pr", help="Open a pull request instead.")
    parser.add_argument("--report", metavar="DIR", help="What evaluate --output_dir wrote, for DIR's own report.")
    parser.add_argument(
        "--examples",
        action="store_true",
        help="Also the adversarial examples of evaluate --store_examples, with which hf-robust-ft verify checks it.",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="Run code that the checkpoint brings, to see that it loads."
    )
    parser.add_argument(
        "--license", metavar="ID", help="Licence of the model, as apache-2.0 (default: the pretrained weights')."
    )
    options = parser.parse_args(argv)
    from hf_robust_ft.hub import publish as run

    info = run(**vars(options))
    print(f"Published and verified: {info.pr_url or info.commit_url}")


def publish_metric(argv: Sequence[str]) -> None:
    """Put the robustness metric on the Hub as a Space, for evaluate.load("OWNER/NAME")."""
    parser = CommandParser("hf-robust-ft publish-metric", description=publish_metric.__doc__)
    parser.add_argument("repo_id", metavar="REPO", help="OWNER/NAME, or a name of your own; created if need be.")
    parser.add_argument("--private", action="store_true", default=None, help="Create it private.")
    options = parser.parse_args(argv)
    from hf_robust_ft.hub import publish_metric as run

    print(f"Published and verified: {run(**vars(options)).commit_url}")
