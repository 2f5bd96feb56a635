"""The output of `packvit plan`."""

from collections.abc import Sequence

import numpy as np

from packvit.common.display import Display
from packvit.evaluate.measures.classification import ACCURACY
from packvit.evaluate.plan.cascade import ROUNDING
from packvit.evaluate.plan.choose import UNITS
from packvit.evaluate.plan.curve import runs_above
from packvit.evaluate.plan.evaluated import Evaluated, Row
from packvit.evaluate.plan.latency import (
    FEWEST,
    LatencyModel,
    fit_latency,
    latency_samples,
    nominal_tokens,
    packed_samples,
)
from packvit.evaluate.plan.make import Comparison, Planned
from packvit.evaluate.report import words
from packvit.evaluate.setting import Setting


def show_plan(planned: Planned, device: str, display: Display) -> None:
    """Print the chosen setting and its alternatives, the best cascade, and the budgets at which cascades
    win."""
    evaluated = planned.halves.evaluated
    for sentence in evaluated.left_out:
        display.say(sentence)
    row = evaluated.rows[planned.chosen]
    accuracy = percent(row.accuracy, row.accuracy_low, row.accuracy_high)
    cost = f"{row.tokens:.1f} tokens, {row.gflops:.4g} GFLOPs"
    if row.p50 is not None:
        cost += f", {ms(row, 'p50')} ms (p50) on {device}"
    images, what = evaluated.correct.shape[1], words(evaluated.measure)
    classified = evaluated.measure == ACCURACY
    calibrated = f", calibrated ECE {number(row.ece_calibrated)}" if classified else ""
    display.say(f"Best setting: {row.setting.name}, {what} {accuracy} on {images} images{calibrated}; {cost}")
    if (sentence := under_corruption(evaluated, row.setting.name)) is not None:
        display.say(sentence)
    rows = [(planned.chosen, "", "chosen")]
    rows += [(other.index, chance(other.p_value), other.why) for other in planned.alternatives]
    display.table(
        "The setting and its alternatives (p: McNemar's exact test against it, on the same images)",
        ["setting", f"{what}, 95 %", "ECE", "tokens", "GFLOPs", "p50 ms", "p99 ms", "p", ""],
        [_cells(evaluated.rows[index], p_value, why) for index, p_value, why in rows],
    )
    if planned.points:
        show_comparison(planned, display)
        show_curve(planned, display)
    if not classified:
        display.say("There is no cascade, because retrieval gives no confidence.")


def under_corruption(evaluated: Evaluated, name: str) -> str | None:
    """The accuracy under corruption of the chosen setting and of the best one; None if it is not known.

    Args:
        name: name of the chosen setting.
    """
    known = evaluated.corruptions
    if name not in known:
        return None
    own, best = known[name], max(known, key=lambda setting: known[setting]["corrupted"])
    sentence = f"Under corruption, the mean of {len(own['kinds'])} kinds, {name} has {own['corrupted']:.2%}"
    if best == name:
        return f"{sentence}, the most of {len(known)} settings."
    return f"{sentence}; the most of {len(known)} settings has {best} with {known[best]['corrupted']:.2%}."


def _cells(row: Row, p_value: str, why: str) -> list[str]:
    return [
        row.setting.name,
        percent(row.accuracy, row.accuracy_low, row.accuracy_high),
        number(row.ece_calibrated),
        f"{row.tokens:.1f}",
        f"{row.gflops:.4g}",
        ms(row, "p50"),
        ms(row, "p99"),
        p_value,
        why,
    ]


def show_comparison(planned: Planned, display: Display) -> None:
    """Print the best cascade beside the chosen setting, and which of them is the plan."""
    found, unit = planned.comparison, UNITS[planned.halves.budget.unit]
    if found is None:
        display.say("No cascade meets this budget on the half of the images used to choose.")
        return
    name = " > ".join(planned.halves.names(found.cascade.cascade))
    images = len(found.cascade.right)
    display.table(
        f"The best cascade beside the setting, on the {images} images that it was not chosen by",
        ["", "accuracy, 95 %", "ECE", f"{unit} an image", "tokens", "GFLOPs"],
        [
            [
                label,
                percent(m.accuracy, m.accuracy_low, m.accuracy_high),
                number(m.ece_calibrated),
                f"{outcome.cost:.4g}",
                f"{m.tokens_per_image:.1f}",
                f"{m.gflops_per_image:.4g}",
            ]
            for label, outcome in ((name, found.cascade), (f"{_single(planned)}", found.single))
            for m in (outcome.measured,)
        ],
    )
    rule = ", ".join(
        f"{share:.1%} continue from {stage} (confidence below {threshold:.4f})"
        for share, stage, threshold in zip(
            found.cascade.shares[1:],
            planned.halves.names(found.cascade.cascade),
            found.cascade.cascade.thresholds,
            strict=False,
        )
    )
    display.say(f"Cascade {name}: {rule}; p {chance(found.p_value)} against {_single(planned)}.")
    display.say(_verdict(found, planned))


def _verdict(found: Comparison, planned: Planned) -> str:
    name = _single(planned)
    budget = planned.halves.budget
    most = float("inf") if budget.most is None else budget.most
    if found.taken and found.cascade.cost > most * (1 + ROUNDING):
        return (
            f"The plan is the cascade. Its cost is at most {most:g} {UNITS[budget.unit]} on the images "
            f"that it was chosen by; on the others it is {found.cascade.cost:.4g}."
        )
    if found.taken:
        return "The plan is the cascade."
    if budget.accuracy is None:
        return f"The plan is {name}: on these images the cascade is not more accurate."
    return f"The plan is {name}: on these images the cascade is not as accurate, or not cheaper."


def _single(planned: Planned) -> str:
    return planned.halves.evaluated.rows[planned.chosen].setting.name


def show_curve(planned: Planned, display: Display) -> None:
    """Print the budgets at which a cascade is above every single setting, or that there are none."""
    unit, points, halves = UNITS[planned.halves.budget.unit], planned.points, planned.halves
    runs = runs_above(points)
    images = "on images that it was not chosen on"
    if not runs:
        display.say(
            f"The best cascade is above every single setting of its cost at none of {len(points)} budgets, "
            f"{points[0].budget:.4g} to {points[-1].budget:.4g} {unit}, {images}."
        )
        return
    longest = max(runs, key=len)
    most = max(points, key=lambda point: point.gain)
    assert most.cascade is not None
    assert most.single is not None
    assert most.p_value is not None
    display.say(
        f"At {sum(map(len, runs))} of {len(points)} budgets the best cascade is above every single setting of"
        f" its cost, {images}; the longest stretch is {longest[0].budget:.4g} to {longest[-1].budget:.4g} "
        f"{unit}."
    )
    display.say(
        f"The largest gain is at {most.budget:.4g} {unit}: {' > '.join(halves.names(most.cascade.cascade))} "
        f"{most.cascade.measured.accuracy:.2%}, {halves.names(most.single.cascade)[0]} "
        f"{most.single.measured.accuracy:.2%} (p {chance(most.p_value)} alone, but it is the best of many)."
    )
    best = max((p.single for p in points if p.single), key=lambda s: (s.measured.accuracy, -s.cost))
    for point in points:
        found = point.cascade
        if found and found.measured.accuracy >= best.measured.accuracy and found.cost < best.cost:
            display.say(
                f"The accuracy of the best single setting, {halves.names(best.cascade)[0]} with "
                f"{best.measured.accuracy:.2%} at {best.cost:.4g} {unit}, is reached at {found.cost:.4g} "
                f"({found.cost / best.cost:.0%}) by {' > '.join(halves.names(found.cascade))}."
            )
            return


def show_predictions(settings: Sequence[Setting], evaluated: Evaluated, display: Display) -> None:
    """Print the predicted latency of settings, and the errors of such predictions for measured settings.

    Raises:
        ValueError: too few settings have a measured latency.
    """
    config = evaluated.config
    alone = fit_latency(latency_samples(evaluated.rows, "p50"), config)
    packed_from = packed_samples(evaluated.rows)
    packed = fit_latency(packed_from, config) if len(packed_from) >= FEWEST else None
    measured = {row.setting.name: row for row in evaluated.rows}
    lines = []
    for setting in settings:
        tokens, p = nominal_tokens(setting), setting.patch_size
        row = measured.get(setting.name)
        lines.append(
            [
                setting.name,
                str(tokens),
                f"{config.flops(tokens, p) / 1e9:.4g}",
                f"{alone.predict(tokens, p):.3g}",
                "-" if row is None else ms(row, "p50"),
                "-" if packed is None else f"{packed.predict(tokens, p):.3g}",
                "" if alone.tokens[0] <= tokens <= alone.tokens[1] else "beyond what was measured",
            ]
        )
    display.table(
        "Predicted milliseconds of a square image: at batch 1, and in a packed batch",
        ["setting", "tokens", "GFLOPs", "p50", "p50 measured", "packed", ""],
        lines,
    )
    say_errors("Latency at batch 1", alone, display)
    if packed is not None:
        say_errors("Images in a packed batch", packed, display)


def say_errors(what: str, model: LatencyModel, display: Display) -> None:
    """Print how well a fitted latency predicts settings that are left out of its fit."""
    errors = model.errors
    display.say(
        f"{what}: predicted from {len(errors)} measured settings; each, predicted from the others, is off "
        f"by {np.median(errors):.1%} (median) and at most {errors.max():.1%}."
    )


def percent(value: float, low: float, high: float) -> str:
    """A share with its interval."""
    return f"{value:.2%} [{100 * low:.1f}, {100 * high:.1f}]"


def chance(p_value: float) -> str:
    """A p-value."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def number(value: float | None) -> str:
    """A small number, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def ms(row: Row, percentile: str) -> str:
    """Milliseconds, with a ~ if they are predicted, or a dash."""
    value = getattr(row, percentile)
    return "-" if value is None else f"{'~' if row.predicted else ''}{value:.3g}"
