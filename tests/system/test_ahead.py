"""What is made one step ahead is what would have been made when it was asked for."""

import threading

import pytest

from ddpm_cli.system.ahead import Ahead


@pytest.fixture
def made():
    """(key, whether the thread of the test made it) of all that was made."""
    return []


@pytest.fixture
def squares(made):
    here = threading.current_thread()

    def square(key):
        made.append((key, threading.current_thread() is here))
        if key == 13:
            raise OSError("no thirteen")
        return key * key

    return Ahead(square, lambda key: key + 1, lambda key: key // 100)


def test_in_order_only_the_first_is_waited_for(squares, made):
    assert [squares(key) for key in range(5)] == [0, 1, 4, 9, 16]
    assert [entry for entry in made if entry[0] < 5] == [(0, True), *((key, False) for key in range(1, 5))]


def test_in_any_order_the_values_are_right(squares):
    asked = [3, 3, 1, 2, 3, 50, 51, 4, 5]
    assert [squares(key) for key in asked] == [key * key for key in asked]


def test_slots_follow_each_their_own(squares, made):
    assert [squares(key) for key in (1, 101, 2, 102, 3)] == [1, 10201, 4, 10404, 9]
    assert [key for key, here in made if here] == [1, 101]


def test_an_error_is_raised_to_who_asks(squares):
    assert squares(12) == 144
    with pytest.raises(OSError, match="no thirteen"):
        squares(13)
    assert squares(14) == 196
