"""What would make a model fit where it does not: more devices, or fewer pins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tools.fit.trials import Asked, Trial


def mends(asked: Asked, missed: Trial, more: Sequence[Trial]) -> Iterator[str]:
    """In words; ``missed``: of the devices that were asked for; ``more``: what was tried beside."""
    least = next((row for row in more if row.fits), None)
    if least is not None:
        yield f"it fits on {least.devices:,} devices, the least of more"
    elif more:
        yield f"it fits on none of more devices, tried up to {more[-1].devices:,}"
    yield from _pins(replace(asked, global_batch=missed.global_batch), missed.devices)


def _pins(asked: Asked, devices: int) -> Iterator[str]:
    """Each pin without which a plan fits; where it takes more than one, whether all of them do."""
    alone = [name for name in asked.pins if asked.without(name).on(devices).fits]
    for name in alone:
        yield f"it fits without the pin {name}={asked.pins[name]}"
    if len(asked.pins) > 1 and not alone and asked.without(*asked.pins).on(devices).fits:
        yield f"it fits without the pins {', '.join(f'{name}={value}' for name, value in asked.pins.items())}"
