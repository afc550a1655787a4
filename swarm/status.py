"""Sticky status bits: what went wrong inside a compiled step, read by the host between chunks."""

import enum


class Status(enum.IntFlag):
    """Bits of `World.status`; once set, a bit stays until the episode ends."""

    ENTITIES_FULL = 1
    NON_FINITE = 2


REMEDIES = {
    Status.ENTITIES_FULL: "entities could not be born for want of slots: raise population.<kind>.capacity",
    Status.NON_FINITE: "a position or store of a living entity is NaN or infinite: check the actions and parameters",
}


def explain(status: int) -> list[str]:
    """Return one line per bit that is set: its name, meaning and remedy."""
    return [f"{bit.name}: {REMEDIES[bit]}" for bit in Status if status & bit]
