"""Ways that are timed in turns, with clocks by hand."""

from medvol.inference.turns import seconds_in_turns


def test_a_machine_that_is_busy_for_a_while_is_so_for_all():
    order = []

    def call(way, seconds):
        def measure():
            order.append(way)
            return seconds + (1.0 if 5 <= len(order) <= 8 else 0.0)  # timed one after the other, all of the best's

        return measure

    calls = {"plain": call("plain", 0.12), "best": call("best", 0.1), "other": call("other", 0.13)}
    assert seconds_in_turns(calls, 1000) == {"plain": 0.12, "best": 0.1, "other": 0.13}
    assert order == ["plain", "best", "other"] * 6


def test_what_is_far_behind_is_called_twice_and_what_was_slow_once_is_not_lost():
    durations = {"hopeless": [0.3, 0.2], "once slow": [0.1, 9.0, 0.1, 0.1, 0.1, 0.08], "best": [0.9] + [0.1] * 5}
    calls = {way: iter(values).__next__ for way, values in durations.items()}
    assert seconds_in_turns(calls, 1000) == {"hopeless": 0.2, "once slow": 0.08, "best": 0.1}


def test_the_first_call_counts_only_where_there_is_no_other():
    calls = {"slow": iter([2.0]).__next__, "quick": iter([0.1, 0.5, 0.4, 0.6]).__next__}
    assert seconds_in_turns(calls, 3.0) == {"slow": 2.0, "quick": 0.4}
