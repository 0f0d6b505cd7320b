"""The evaluation of `AdversarialTrainer`: what `evaluate()` adds to Trainer's, its report and its pictures."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from hf_robust_ft.attacks import APGD, Square, attack_mode
from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.model_calls import extract_logits
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace, input_dtype
from hf_robust_ft.attacks.precision import evaluated_in, half_of
from hf_robust_ft.attacks.random_state import random_state_kept
from hf_robust_ft.attacks.rehearsal import count_classes, stated_classes
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.data.sources import loaded_facts
from hf_robust_ft.evaluation.batch_artifacts import misclassified_again
from hf_robust_ft.evaluation.batches import first_images
from hf_robust_ft.evaluation.convergence import AUTO, Convergence, with_convergence
from hf_robust_ft.evaluation.protocols import Outcome, attack_on_grid, attack_standing, closing_attacks
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.evaluation.trust_checks import run_trust_checks
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.image_hashes import as_hex, hash_images
from hf_robust_ft.reporting import choose_examples, save_examples
from hf_robust_ft.reporting.examples import remove_examples
from hf_robust_ft.reporting.model_card import EXAMPLES
from hf_robust_ft.schedules.sample_ids import SAMPLE_ID
from hf_robust_ft.training.base.publishing import PublishingTrainer
from hf_robust_ft.training.evaluation_record import EvaluationRecord
from hf_robust_ft.training.readable_logs import print_readable_eps

SHOWN_EXAMPLES = 4  # attacked images beside the card, of those that the trust checks look at


class EvaluatingTrainer(PublishingTrainer):
    """`PublishingTrainer` whose `evaluate()` also attacks, as `args` (`AdversarialTrainingArguments`) say.

    Args:
        pixel_space: the normalisation of `pixel_values`.
    """

    def __init__(self, *args: Any, pixel_space: PixelSpace, **kwargs: Any):
        self.pixel_space = pixel_space
        self._class_names: list[str] = []
        self._examples: tuple[Tensor, Tensor, Tensor] | None = None  # pixels, labels, smallest fooling eps
        self._evaluation: EvaluationRecord | None = None
        self._rehearsed: tuple[nn.Module | None, int | None, bool] = None, None, False
        super().__init__(*args, **kwargs)
        print_readable_eps(self.callback_handler, self.args.norm)

    @property
    def num_labels(self) -> int | None:
        """K: the width of the logits once there were any; before, what the config says, if a weight has that size."""
        model, count, _ = self._rehearsed
        return count if model is self.model else stated_classes(self.model)

    def _rehearse(self, inputs: Mapping[str, Any], attacked: bool) -> None:
        """Learn K from two images and, where the model is to be attacked, that attacks find a gradient; once a model.

        Raises:
            ValueError: a batch an attack cannot work on, a single class, or no gradient.
        """
        model, _, has_gradient = self._rehearsed
        if model is self.model and (not attacked or (has_gradient and not torch.is_inference_mode_enabled())):
            return
        check_batch(inputs, self.pixel_space)
        few = first_images(inputs, 2)
        pixels = self.pixel_space.clipped_pixels(few["pixel_values"])
        with random_state_kept(), attack_mode(self.model, freeze=not self.is_fsdp_enabled):
            count = count_classes(self._classifier(few), pixels, attacked)
        self._rehearsed = self.model, count, attacked

    def _classifier(self, inputs: Mapping[str, Any], model: nn.Module | None = None) -> PixelClassifier:
        """What is attacked: the unwrapped model, given everything of the batch but its images and labels.

        Through DDP's wrapper a second forward would disturb gradient synchronisation.
        """
        own = ("pixel_values", SAMPLE_ID, *self.label_names)
        others = {key: value for key, value in inputs.items() if key not in own}
        return PixelClassifier(self.model if model is None else model, self.pixel_space, others)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        if description == "Prediction":  # predict() returns the model's own predictions and nothing more
            with random_state_kept():
                return super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
        attacks = self.args.robust_eval == "epoch" or (self.args.robust_eval == "end" and not self.is_in_train)
        self._evaluation = self._new_evaluation(attacks, getattr(dataloader, "dataset", None))
        try:
            with random_state_kept():  # how often is evaluated has no say in the training that goes on
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
                if self._evaluation.rounds is not None and self._evaluation.num_classes:
                    self._evaluation.rounds.closing = closing_attacks(
                        self.args.eval_protocol, self.args.norm, self._evaluation.num_classes
                    )
                while (attack := self._evaluation.next_attack()) is not None:
                    self._attack_again(dataloader, attack)
            output.metrics.update(self._robustness_metrics(self._evaluation, metric_key_prefix))
        finally:
            self._evaluation = None
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        if self._evaluation is None or inputs.get("labels") is None:
            return super().prediction_step(model, self._as_stored(inputs), prediction_loss_only, ignore_keys)
        self._rehearse(inputs, attacked=self._evaluation.epsilons[-1] > 0)
        check = check_batch if self._evaluation.gathered else check_first_batch
        check(inputs, self.pixel_space, self.num_labels)
        loss, logits, labels = super().prediction_step(model, self._as_stored(inputs), False, ignore_keys)
        classifier = self._classifier(inputs)
        clean = self._clean_logits(classifier, inputs)
        self._evaluation.num_classes = clean.shape[1]
        pixels = self.pixel_space.clipped_pixels(inputs["pixel_values"])
        with attack_mode(self.model, freeze=not self.is_fsdp_enabled), self._evaluation.metered(classifier):
            outcome = attack_on_grid(
                classifier,
                pixels,
                inputs["labels"],
                threat_model=self.args.threat_model,
                epsilons=self._evaluation.epsilons,
                attack=self.args.eval_attack,
                clean_predictions=clean.argmax(1),
                # FSDP's forward waits for every rank: no rank may attack fewer images than the others.
                survivors_only=not self.is_fsdp_enabled and not classifier.model_inputs,
            )
        evaluation = self._evaluation
        attacks = len(evaluation.epsilons) > 1
        again = torch.full_like(inputs["labels"], -1)
        if attacks:
            again = self._found_again(classifier, outcome, inputs["labels"])
        evaluation.add_own(None if classifier.model_inputs else pixels, inputs["labels"], outcome, again)
        evaluation.add(self.accelerator.gather_for_metrics((inputs["labels"], *evaluation.own[-1])))
        if attacks:
            hashes = self.accelerator.gather_for_metrics(hash_images(pixels).to(pixels.device))
            evaluation.image_hashes.append(hashes.cpu())
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def _new_evaluation(self, attacks: bool, dataset: Any) -> EvaluationRecord:
        grid, rounds = self.args.evaluation_grid if attacks else [0.0], None
        if self.args.eval_attack_steps == AUTO and len(grid) > 1:
            limit = self.args.eval_attack_steps_limit
            rounds = Convergence(self.args.eval_attack, grid, self.args.eval_protocol, limit, "eval_attack_steps_limit")
        return EvaluationRecord(grid, dataset, rounds, self.args.seed)

    def _attack_again(self, dataloader: DataLoader, attack: APGD | Square) -> None:
        """One more round: every batch comes again, and what stands in it is attacked."""
        evaluation = self._evaluation
        for number, batch in enumerate(dataloader):
            inputs = self._prepare_inputs(batch)
            pixels = self.pixel_space.clipped_pixels(inputs["pixel_values"])
            smallest_eps, wrong_classes, again = evaluation.own[number]
            classifier = self._classifier(inputs)
            with attack_mode(self.model), evaluation.metered(classifier):
                outcome = attack_standing(
                    classifier,
                    pixels,
                    inputs["labels"],
                    smallest_eps=smallest_eps,
                    wrong_classes=wrong_classes,
                    threat_model=self.args.threat_model,
                    epsilons=evaluation.epsilons,
                    attack=attack,
                )
            new = outcome.smallest_eps < smallest_eps
            again = torch.where(new, self._found_again(classifier, outcome, inputs["labels"]), again)
            evaluation.own[number] = (outcome.smallest_eps, outcome.wrong_classes, again)
            evaluation.add(self.accelerator.gather_for_metrics((inputs["labels"], *evaluation.own[number])))

    def _found_again(self, classifier: PixelClassifier, outcome: Outcome, labels: Tensor) -> Tensor:
        """Of each image whether its example is misclassified in another batch: 1 or 0, and -1 without one; (N,)."""
        has_example = (outcome.smallest_eps > 0) & outcome.smallest_eps.isfinite()
        # As many images on every rank: FSDP's forward waits for all of them.
        whole = self.is_fsdp_enabled or bool(classifier.model_inputs)
        with attack_mode(self.model, freeze=not self.is_fsdp_enabled):
            wrong = misclassified_again(classifier, outcome.adversarial, labels, in_halves=not whole)
        return torch.where(has_example, wrong.long(), -1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self._evaluation is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._evaluation.outputs = outputs
        return (loss, outputs) if return_outputs else loss

    def _clean_logits(self, classifier: PixelClassifier, inputs: Mapping[str, Any]) -> Tensor:
        """Those of the evaluation's own forward: what Trainer returns is all outputs in their order, or fewer."""
        outputs, self._evaluation.outputs = self._evaluation.outputs, None
        if outputs is not None:
            return extract_logits(outputs)
        with torch.no_grad(), self.compute_loss_context_manager():  # a compute_loss of the user's, without ours
            return classifier(self.pixel_space.clipped_pixels(inputs["pixel_values"]))

    def _as_stored(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with images of the dtype that a model stored in half precision takes."""
        if half_of(self.model) is None or "pixel_values" not in inputs:
            return dict(inputs)
        return {**inputs, "pixel_values": inputs["pixel_values"].to(input_dtype(self.model))}

    def _robustness_metrics(self, evaluation: EvaluationRecord, prefix: str) -> dict[str, float]:
        if not evaluation.gathered:
            return {}
        rounds = evaluation.rounds
        self._class_names = class_names(getattr(self.model, "config", None), evaluation.num_classes)
        *found, again = (torch.cat(parts).numpy() for parts in zip(*evaluation.gathered, strict=True))
        passes = torch.tensor([evaluation.passes], device=self.accelerator.device)
        report = build_report(
            *found,
            image_hashes=[each for part in evaluation.image_hashes for each in as_hex(part)],
            found_again=[None if wrong < 0 else bool(wrong) for wrong in again],
            passes=self.accelerator.gather(passes).tolist(),
            threat_model=self.args.threat_model,
            epsilons=evaluation.epsilons,
            protocol=self.args.eval_protocol,
            attack=self.args.eval_attack if rounds is None else rounds.attack,
            checks=self._trust_checks(evaluation),
            convergence=None if rounds is None else rounds.described(),
            class_names=self._class_names,
            metadata=self._metadata() | self._data_facts(evaluation.dataset) | self._evaluated_in(),
        )
        metrics = {f"{prefix}_clean_accuracy": report.clean_accuracy}
        if len(report.epsilons) > 1:
            self._keep_report(report)
            self._examples = None if self.is_fsdp_enabled or not evaluation.checked else evaluation.checked_images()
            metrics[f"{prefix}_adversarial_accuracy"] = report.adversarial_accuracy
            metrics[f"{prefix}_expected_robustness"] = report.expected_robustness
            metrics[f"{prefix}_reliable"] = float(is_reliable(report))
            if rounds is not None:
                metrics |= {f"{prefix}_{name}": value for name, value in rounds.metrics().items()}
        return metrics

    def _trust_checks(self, evaluation: EvaluationRecord) -> list[TrustCheck]:
        """On images drawn from this process's, after training: they cost as much as attacking 64 images 20 times."""
        # FSDP's forward waits for every rank, and checks attack as many images as happen to be correct.
        if self.is_in_train or self.is_fsdp_enabled or len(evaluation.epsilons) == 1 or not evaluation.checked:
            return []
        pixels, labels, smallest = evaluation.checked_images()
        with attack_mode(self.model):
            checks = run_trust_checks(
                self._classifier({}),
                pixels,
                labels,
                self.args.threat_model,
                self.args.eval_attack,
                seed=self.args.seed,
                batch_size=self.args.per_device_eval_batch_size,
                check_converged=evaluation.rounds is None,
                standing=smallest > evaluation.epsilons[-1],
                classes=evaluation.classes(),
                protocol=self.args.eval_protocol,
            )
        return checks if evaluation.rounds is None else with_convergence(checks, evaluation.rounds)

    def _data_facts(self, dataset: Any) -> dict[str, Any]:
        """Where the images are from, and after training which they are: that reads all their files."""
        digest = None if self.is_in_train else source_digest(dataset)
        return loaded_facts(dataset) | ({"source_digest": digest} if digest else {})

    def _evaluated_in(self) -> dict[str, str]:
        """The half precision of this evaluation, that of training and of the weights included."""
        autocast = self.accelerator.mixed_precision
        warns = not self.is_in_train and self.is_world_process_zero()
        return evaluated_in(self.model, None if autocast == "no" else autocast, warn=warns)

    def _metadata(self) -> dict[str, Any]:
        """What a report says of the training."""
        raise NotImplementedError

    def _write_examples(self, folder: str) -> None:
        remove_examples(Path(folder, EXAMPLES))  # of other weights
        if self._examples is None:
            return
        pixels, labels, smallest = self._examples
        candidates, fell = choose_examples(smallest.tolist(), SHOWN_EXAMPLES, self.args.seed)
        save_examples(
            self._classifier({}),
            pixels[candidates],
            labels[candidates],
            os.path.join(folder, EXAMPLES),
            threat_model=self.args.threat_model,
            attack=replace(self.args.eval_attack, steps=self.robustness_report.attack["steps"]),
            class_names=self._class_names,
            fell=fell,
            count=SHOWN_EXAMPLES,
        )
