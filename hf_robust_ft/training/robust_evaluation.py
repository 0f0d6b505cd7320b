"""What `AdversarialTrainer.evaluate()` adds to Trainer's: the attack on every batch, a report, and pictures."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_robust_ft.attacks import APGD, Square
from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.model_calls import extract_logits
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.evaluation.batch_artifacts import misclassified_again
from hf_robust_ft.evaluation.checked_images import CHECKED_IMAGES, ClassReservoir
from hf_robust_ft.evaluation.convergence import AUTO, Convergence, with_convergence
from hf_robust_ft.evaluation.progress import counted, progress_bar
from hf_robust_ft.evaluation.protocols import Outcome, attack_on_grid, attack_standing, closing_attacks
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.evaluation.trust_checks import run_trust_checks
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.image_hashes import as_hex, hash_images
from hf_robust_ft.reporting import choose_examples, save_examples
from hf_robust_ft.reporting.examples import remove_examples
from hf_robust_ft.reporting.model_card import EXAMPLES
from hf_robust_ft.training.evaluation_facts import data_facts, precision_facts

SHOWN_EXAMPLES = 4  # attacked images beside the card, of those that the trust checks look at


class RobustEvaluation:
    """One evaluation by the Trainer, in the stages of `evaluate_robustness`: check, measure, gather, report.

    `check` and `measure` are called with each batch, `conclude` in the end. All processes make every call, each with
    its own batches.

    Args:
        trainer: the `AdversarialTrainer`, for its arguments, model, adversary and processes.
        dataloader: what is evaluated; further rounds read it again.
    """

    def __init__(self, trainer: Any, dataloader: DataLoader):
        self.trainer, self.dataloader = trainer, dataloader
        self.args, self.accelerator = trainer.args, trainer.accelerator
        self.adversary, self.model = trainer.adversary, trainer.model
        args, self.in_training = trainer.args, trainer.is_in_train
        attacks = args.robust_eval == "epoch" or (args.robust_eval == "end" and not self.in_training)
        self.epsilons = args.evaluation_grid if attacks else [0.0]
        self.attacks = len(self.epsilons) > 1
        self.rounds: Convergence | None = None
        if self.attacks and args.eval_attack_steps == AUTO:
            limit = args.eval_attack_steps_limit
            self.rounds = Convergence(
                args.eval_attack, self.epsilons, args.eval_protocol, limit, "eval_attack_steps_limit"
            )
        self.outputs: Any = None  # of the model for the batch at hand, where the trainer saw them
        self.num_classes: int | None = None  # the width of the logits
        # Of this process's batches: smallest eps, wrong classes, and whether examples were found again (-1: none).
        self._own: list[tuple[Tensor, Tensor, Tensor]] = []
        self._gathered: list[tuple[Tensor, ...]] = []  # labels and the same, of every process
        self._image_hashes: list[Tensor] = []  # of every process
        self._passes = [0, 0]  # images in this process's forwards and gradients
        self._checked = ClassReservoir(CHECKED_IMAGES, args.seed)  # of this process's images
        self._own_images = 0

    # ---- Check -----------------------------------------------------------------------

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError for a batch that cannot be measured, the first one more strictly."""
        self.adversary.rehearse(self.model, inputs, attacked=self.attacks)
        check = check_batch if self._gathered else check_first_batch
        check(inputs, self.adversary.pixel_space, self.adversary.num_labels(self.model))

    # ---- Measure ---------------------------------------------------------------------

    def measure(self, inputs: Mapping[str, Any]) -> None:
        """Attack a batch at every eps, and gather what was found from all processes."""
        classifier = self.adversary.classifier(self.model, inputs)
        pixels, labels = self._pixels(inputs), inputs["labels"]
        clean = self._clean_logits(classifier, pixels)
        self.num_classes = clean.shape[1]
        with self.adversary.mode(self.model), self._metered(classifier):
            outcome = attack_on_grid(
                classifier,
                pixels,
                labels,
                threat_model=self.args.threat_model,
                epsilons=self.epsilons,
                attack=self.args.eval_attack,
                clean_predictions=clean.argmax(1),
                # FSDP's forward waits for every rank: no rank may attack fewer images than the others.
                survivors_only=not self.adversary.is_sharded and not classifier.model_inputs,
            )
        again = torch.full_like(labels, -1)
        if self.attacks:
            again = self._found_again(classifier, outcome, labels)
            hashes = self.accelerator.gather_for_metrics(hash_images(pixels).to(pixels.device))
            self._image_hashes.append(hashes.cpu())
        if not classifier.model_inputs:  # with these an image cannot be looked at alone
            self._checked.add(pixels, labels, self._own_images)
        self._own_images += len(labels)
        self._own.append((outcome.smallest_eps, outcome.wrong_classes, again))
        self._gather(labels, self._own[-1])

    def _go_on(self) -> None:
        """Further rounds, while any is due: every batch comes again, and what stands in it is attacked."""
        if self.rounds is None or not self.num_classes:
            return
        self.rounds.closing = closing_attacks(self.args.eval_protocol, self.args.norm, self.num_classes)
        while self._gathered and (attack := self.rounds.after(self._smallest_epsilons())) is not None:
            self._gathered = []
            for number, batch in enumerate(self.dataloader):
                self._measure_again(number, self.trainer._prepare_inputs(batch), attack)

    def _measure_again(self, number: int, inputs: Mapping[str, Any], attack: APGD | Square) -> None:
        smallest_eps, wrong_classes, again = self._own[number]
        classifier, labels = self.adversary.classifier(self.model, inputs), inputs["labels"]
        with self.adversary.mode(self.model), self._metered(classifier):
            outcome = attack_standing(
                classifier,
                self._pixels(inputs),
                labels,
                smallest_eps=smallest_eps,
                wrong_classes=wrong_classes,
                threat_model=self.args.threat_model,
                epsilons=self.epsilons,
                attack=attack,
            )
        new = outcome.smallest_eps < smallest_eps
        again = torch.where(new, self._found_again(classifier, outcome, labels), again)
        self._own[number] = (outcome.smallest_eps, outcome.wrong_classes, again)
        self._gather(labels, self._own[number])

    def _found_again(self, classifier: PixelClassifier, outcome: Outcome, labels: Tensor) -> Tensor:
        """Of each image whether its example is misclassified in another batch: 1 or 0, and -1 without one; (N,)."""
        has_example = (outcome.smallest_eps > 0) & outcome.smallest_eps.isfinite()
        # As many images on every rank: FSDP's forward waits for all of them.
        whole = self.adversary.is_sharded or bool(classifier.model_inputs)
        with self.adversary.mode(self.model):
            wrong = misclassified_again(classifier, outcome.adversarial, labels, in_halves=not whole)
        return torch.where(has_example, wrong.long(), -1)

    def _clean_logits(self, classifier: PixelClassifier, pixels: Tensor) -> Tensor:
        """Those of the evaluation's own forward: what Trainer returns is all outputs in their order, or fewer."""
        outputs, self.outputs = self.outputs, None
        if outputs is not None:
            return extract_logits(outputs)
        with torch.no_grad(), self.trainer.compute_loss_context_manager():  # a compute_loss of the user's, without ours
            return classifier(pixels)

    def _pixels(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.adversary.pixel_space.clipped_pixels(inputs["pixel_values"])

    @contextmanager
    def _metered(self, classifier: PixelClassifier) -> Iterator[None]:
        with PassMeter(classifier) as meter:
            yield
        self._passes = [self._passes[0] + meter.forwards, self._passes[1] + meter.gradients]

    # ---- Gather ----------------------------------------------------------------------

    def _gather(self, labels: Tensor, own: tuple[Tensor, Tensor, Tensor]) -> None:
        """Enter what all processes found of a batch, without what fills up the last one."""
        found = self.accelerator.gather_for_metrics((labels, *own))
        self._gathered.append(tuple(values.cpu() for values in found))

    def _smallest_epsilons(self) -> Any:
        return torch.cat([smallest for _, smallest, *_ in self._gathered]).numpy()

    # ---- Report ----------------------------------------------------------------------

    def conclude(self, prefix: str) -> dict[str, float]:
        """What `evaluate()` is to return beside Trainer's own; the trainer keeps the report, where attacks ran."""
        self._go_on()
        if not self._gathered:  # no batch held labels
            return {}
        report = self._report()
        metrics = {"clean_accuracy": report.clean_accuracy}
        if self.attacks:
            self.trainer._keep_report(report, self._examples_writer(report))
            metrics |= {
                "adversarial_accuracy": report.adversarial_accuracy,
                "expected_robustness": report.expected_robustness,
                "reliable": float(is_reliable(report)),
            }
        if self.rounds is not None:
            metrics |= self.rounds.metrics()
        return {f"{prefix}_{name}": value for name, value in metrics.items()}

    def _report(self) -> RobustnessReport:
        *found, again = (torch.cat(parts).numpy() for parts in zip(*self._gathered, strict=True))
        passes = torch.tensor([self._passes], device=self.accelerator.device)
        return build_report(
            *found,
            image_hashes=[each for part in self._image_hashes for each in as_hex(part)],
            found_again=[None if wrong < 0 else bool(wrong) for wrong in again],
            passes=self.accelerator.gather(passes).tolist(),
            threat_model=self.args.threat_model,
            epsilons=self.epsilons,
            protocol=self.args.eval_protocol,
            attack=self.args.eval_attack if self.rounds is None else self.rounds.attack,
            checks=self._trust_checks(),
            convergence=None if self.rounds is None else self.rounds.described(),
            class_names=self._class_names(),
            metadata=self.trainer.facts().merged(
                data_facts(getattr(self.dataloader, "dataset", None), self.in_training),
                precision_facts(self.model, self.accelerator, self.in_training),
            ),
        )

    def _trust_checks(self) -> list[TrustCheck]:
        """On images drawn from this process's, after training: they cost as much as attacking 64 images 20 times."""
        # FSDP's forward waits for every rank, and checks attack as many images as happen to be correct.
        if self.in_training or self.adversary.is_sharded or not self.attacks or not self._checked:
            return []
        pixels, labels, smallest = self._checked_images()
        found = torch.cat([torch.cat([labels, wrong]) for labels, _, wrong, _ in self._gathered]).unique()
        silent = self.args.disable_tqdm or not self.trainer.is_world_process_zero()
        bar = progress_bar(None, "Trust checks", "forward passes", disable=silent, leave=False)
        with self.adversary.mode(self.model), bar:
            checks = run_trust_checks(
                counted(self.adversary.classifier(self.model, {}), bar),
                pixels,
                labels,
                self.args.threat_model,
                self.args.eval_attack,
                seed=self.args.seed,
                batch_size=self.args.per_device_eval_batch_size,
                check_converged=self.rounds is None,
                standing=smallest > self.epsilons[-1],
                classes=found[found >= 0],
                protocol=self.args.eval_protocol,
            )
        return checks if self.rounds is None else with_convergence(checks, self.rounds)

    def _checked_images(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, labels and smallest fooling eps of the images drawn."""
        pixels, labels, positions = self._checked.images()
        return pixels, labels, torch.cat([smallest for smallest, *_ in self._own])[positions]

    def _class_names(self) -> list[str]:
        return class_names(getattr(self.model, "config", None), self.num_classes)

    # ---- Pictures --------------------------------------------------------------------

    def _examples_writer(self, report: RobustnessReport) -> Callable[[str], None]:
        """Puts pictures of attacked images into a folder. The trainer keeps it: it holds these images and no model."""
        is_shown = not self.adversary.is_sharded and len(self._checked)
        images = self._checked_images() if is_shown else None
        return partial(_write_examples, self.trainer, images, report.attack["steps"], self._class_names())


def _write_examples(
    trainer: Any, images: tuple[Tensor, Tensor, Tensor] | None, attack_steps: int, names: list[str], folder: str
) -> None:
    """Take pictures of other weights out of a folder, and put some of these images, labels, smallest eps there."""
    pictures = Path(folder, EXAMPLES)
    remove_examples(pictures)
    if images is None:
        return
    pixels, labels, smallest = images
    candidates, fell = choose_examples(smallest.tolist(), SHOWN_EXAMPLES, trainer.args.seed)
    save_examples(
        trainer.adversary.classifier(trainer.model, {}),
        pixels[candidates],
        labels[candidates],
        pictures,
        threat_model=trainer.args.threat_model,
        attack=replace(trainer.args.eval_attack, steps=attack_steps),
        class_names=names,
        fell=fell,
        count=SHOWN_EXAMPLES,
    )
