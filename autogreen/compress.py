"""What is done to a model before it is saved: prune -> distil -> lower, in that order whatever the file says."""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autogreen.errors import RefusedError
from autogreen.techniques import TECHNIQUES, Context, unseen

if TYPE_CHECKING:
    from torch import Tensor, nn


def compress(parts: Mapping[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
    """Prune and train a model, in as many rounds as the policy says; return it in inference mode.

        round i of n:   score -> remove, up to i/n of what shall go -> fine-tune -> too much loss? the model before

    What quantization asks of training (fake rounding) is in force while the weights that may stay are trained: in the
    last round, and in every one where `stop_loss` may end the loop there; so the loss that decides counts rounding in.
    """
    pruning, distillation = TECHNIQUES["pruning"], TECHNIQUES["distillation"]
    training = parts.get("distillation", {})
    rounds, stop_loss = training.get("rounds", 1), training.get("stop_loss")
    for number in range(1, rounds + 1):
        before = model if stop_loss is None else copy.deepcopy(model)
        if "pruning" in parts:
            removal = parts["pruning"]
            removal = removal if number == rounds else pruning.part(removal, number / rounds)
            model = pruning.apply(removal, model, context)
        if not training:
            break
        final = number == rounds
        at = context if final else replace(context, look=unseen)  # it has not its final shape yet
        if final and training["epochs"]:
            context.look(model, distillation.of_round(training, number)["first_epoch"])
        with ExitStack() as stack:
            if final or stop_loss is not None:
                for section, technique in TECHNIQUES.items():
                    if section in parts:
                        stack.enter_context(technique.aware(parts[section], model, context))
            model = distillation.apply(distillation.of_round(training, number), model, at)
            too_much = stop_loss is not None and distillation.excess_loss(model, context) > stop_loss
        if too_much:
            model = before
            break
    return _finished(parts, model, context)


def restore(
    parts: Mapping[str, Any], model: "nn.Module", weights: "Mapping[str, Tensor]", context: Context
) -> "nn.Module":
    """What `compress` made, from its weights, by name: nothing is scored and nothing is trained.

    Raises:
        RefusedError: they are not this policy's, or of another model.
    """
    if "pruning" in parts:
        model = TECHNIQUES["pruning"].fit(parts["pruning"], model, weights, context)
    load_weights(model, weights)
    return _finished(parts, model, context)


def load_weights(model: "nn.Module", weights: "Mapping[str, Tensor]") -> None:
    """In place, each and every one.

    Raises:
        RefusedError: names or shapes differ.
    """
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise RefusedError(f"the kept weights are of another model: {told[:300]}") from error


def _finished(parts: Mapping[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
    """What sections do to a model that is trained already."""
    for section, technique in TECHNIQUES.items():
        if section in parts and section not in ("pruning", "distillation"):
            model = technique.apply(parts[section], model, context)
    return model.eval()


def lower(parts: Mapping[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
    """Bring a trained model into the kernels that it ships with."""
    for section, technique in TECHNIQUES.items():
        if section in parts:
            model = technique.lower(parts[section], model, context)
    return model
