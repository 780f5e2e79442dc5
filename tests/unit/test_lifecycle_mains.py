"""Stories of several mains, one after another over one background: known beforehand, or named while it goes on."""

from typing import Any

import pytest

from scheduler.events import (
    DeadlinePassed,
    Event,
    Exited,
    Finished,
    Issuing,
    Launch,
    NextMain,
    NoMoreMains,
    Ready,
    Stop,
)
from scheduler.lifecycle import IllegalEvent, Phase, Run, Stage
from tests.unit.test_lifecycle import STANDARD, a_run, codes, reached, told


def test_several_mains_follow_one_another_over_one_background():
    run = a_run(mains=("first", "second"))
    run.begin(0)
    told(run, *STANDARD[:4])
    assert told(run, DeadlinePassed(15)) == [Launch("first")]
    assert told(run, Ready("first", 16), Issuing("first", 17, 17), Finished("first", 30)) == []
    assert (run.phase, run.deadline) == (Phase.MEASURING, 1015)

    assert told(run, Exited("first", 31, 0)) == [Launch("second")]
    assert (run.phase, run.deadline) == (Phase.MEASURING, 1031)

    told(run, Ready("second", 33), Issuing("second", 34, 34), Finished("second", 50))
    assert (run.phase, run.deadline) == (Phase.DRAINING, 57)
    assert run.breaches == ()


def test_a_second_main_that_dies_ends_the_run():
    run = a_run(mains=("first", "second"))
    run.begin(0)
    told(run, *STANDARD[:5], Ready("first", 16), Finished("first", 30), Exited("first", 31, 0))
    assert told(run, Exited("second", 32, 1)) == [Stop("a"), Stop("b")]
    assert codes(run) == [("main-died", "second")]


def test_a_first_main_that_does_not_end_is_late():
    run = a_run(mains=("first", "second"))
    run.begin(0)
    told(run, *STANDARD[:5], Ready("first", 16), Finished("first", 30))
    assert told(run, DeadlinePassed(1015)) == [Stop("a"), Stop("b"), Stop("first")]
    assert codes(run) == [("main-timeout", "first")]
    assert run.stages["second"] is Stage.NOT_STARTED


def asked_for_the_next(**policy: Any) -> Run:
    """Over one background, the first of several mains has been measured and is gone at 31."""
    run = a_run(mains=("first",), more_mains=True, **policy)
    run.begin(0)
    told(run, *STANDARD[:5], Ready("first", 16), Issuing("first", 17, 17), Finished("first", 30))
    assert not run.asks_for_the_next_main
    assert told(run, Exited("first", 31, 0)) == []
    assert run.asks_for_the_next_main
    assert (run.phase, run.deadline) == (Phase.MEASURING, 1031)
    return run


def test_mains_are_named_one_after_another_while_the_background_goes_on():
    run = asked_for_the_next()
    assert told(run, NextMain("second", 32)) == [Launch("second")]
    assert (run.phase, run.deadline, run.asks_for_the_next_main) == (Phase.MEASURING, 1032, False)

    told(run, Ready("second", 33), Issuing("second", 34, 34), Finished("second", 50), Exited("second", 51, 0))
    assert told(run, NoMoreMains(52)) == []
    assert (run.phase, run.deadline) == (Phase.DRAINING, 59)
    assert told(run, DeadlinePassed(59)) == [Stop("a"), Stop("b")]
    assert run.breaches == ()


def test_without_a_word_no_more_mains_follow():
    run = asked_for_the_next()
    assert told(run, DeadlinePassed(1031)) == []
    assert (run.phase, run.breaches) == (Phase.DRAINING, ())


@pytest.mark.parametrize("event", [NextMain("first", 32), NextMain("a", 32)])
def test_a_main_is_not_named_twice(event: Event):
    run = asked_for_the_next()
    with pytest.raises(IllegalEvent, match="not one of that name"):
        run.handle(event)

    assert run.mains == ("first",)


@pytest.mark.parametrize("event", [NextMain("second", 32), NoMoreMains(32)])
def test_nothing_follows_unasked(event: Event):
    run = reached("measuring")
    with pytest.raises(IllegalEvent, match="no next main was asked for"):
        run.handle(event)


def test_a_background_that_dies_between_two_mains_ends_the_run():
    run = asked_for_the_next()
    assert told(run, Exited("a", 32, 1)) == [Stop("b")]
    assert (run.phase, codes(run)) == (Phase.STOPPING, [("background-died", "a")])
