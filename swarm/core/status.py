"""Sticky status bits: what went wrong inside a compiled step, read by the host between chunks."""

import enum
from collections.abc import Iterable
from typing import NamedTuple


class Status(enum.IntFlag):
    """Bits of `World.status`; once set, a bit stays until the episode ends."""

    ENTITIES_FULL = 1
    NON_FINITE = 2
    NEIGHBORS_FULL = 4
    GROUPS_FULL = 8
    BAD_ACTION = 16
    COMMAND_LIMITED = 32
    BELOW_GROUND = 64
    BAD_OBSERVATION = 128
    BAD_REWARD = 256
    IDENTITIES_SPENT = 512


OVERFLOWS = Status.ENTITIES_FULL | Status.NEIGHBORS_FULL | Status.GROUPS_FULL
"""Bits that more room would have kept away; `swarm.play.episodes.play` can make it and repeat the steps."""

REMEDIES = {
    Status.ENTITIES_FULL: "entities could not be born for want of slots: raise population.<kind>.capacity",
    Status.NON_FINITE: "the state of a living entity is NaN or infinite: check the parameters and the time step",
    Status.NEIGHBORS_FULL: "a neighbour search missed some for want of room: raise search.room",
    Status.GROUPS_FULL: "groups could not be formed for want of slots: give that level of [groups] more slots",
    Status.IDENTITIES_SPENT: "so many entities or groups came to be that 32 bits number no more: end episodes earlier",
    Status.BAD_ACTION: "an action is NaN, infinite or no action's index, and was replaced: check the policy",
    Status.COMMAND_LIMITED: "a command in physical units is beyond a limit of the vehicle, and was cut to it: command "
    "less, or raise the limit",
    Status.BELOW_GROUND: "a living drone is below the ground, which nothing stops it at: let it crash there, or give "
    "drone_dynamics a `ground`",
    Status.BAD_OBSERVATION: "what a living entity sees is NaN or infinite: check `observe` of the rules",
    Status.BAD_REWARD: "what a living entity earned is NaN or infinite: check the rewards and their weights",
}


class Fault(NamedTuple):
    """The first time that a bit was raised: by the step that led to `World.step` = `step`.

    Attributes:
        bit: which one.
        step: number of the step, from 1; 0: by the reset.
        uid: the offender, the first by slot; None where the bit concerns no single entity.
        world: number of the world in its batch; None where there is but one.
    """

    bit: Status
    step: int
    uid: int | None = None
    world: int | None = None

    def __str__(self) -> str:
        """Return one line: name, step, offender, meaning and remedy."""
        world = "" if self.world is None else f", world {self.world}"
        uid = "" if self.uid is None else f", uid {self.uid}"
        return f"{self.bit.name} at step {self.step}{world}{uid}: {REMEDIES[self.bit]}"


def explain(status: int, faults: Iterable[Fault] = ()) -> list[str]:
    """Return one line per bit that is set: its name, meaning and remedy; where and who, if a fault tells."""
    known = {fault.bit: str(fault) for fault in faults}
    return [known.get(bit, f"{bit.name}: {REMEDIES[bit]}") for bit in Status if status & bit]
