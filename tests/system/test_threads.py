"""How many threads share the work: those that are asked for, or as many as processors are free."""

import os

import pytest
import torch

from ddpm_cli.system import threads


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Of eight processors, with as many threads at work as it is told, this one among them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "_APART", 0.0)

    def tell(running, quota="max 100000"):
        (tmp_path / "stat").write_text(f"cpu 1 2 3\nprocs_running {running}\nprocs_blocked 0\n")
        (tmp_path / "cpu.max").write_text(f"{quota}\n")

    return tell


@pytest.mark.parametrize(("running", "free"), [(1, 8), (2, 7), (7, 2), (8, 1), (40, 1)])
def test_processors_that_others_are_busy_with_are_left_to_them(machine, running, free):
    machine(running)
    assert threads.free_processors(8) == free


@pytest.mark.parametrize(("quota", "most"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)])
def test_a_containers_share_of_the_processors_is_kept(machine, quota, most):
    machine(1, quota)
    assert threads.free_processors(8) == most


def test_what_torch_would_take_is_the_most(machine):
    machine(1)
    assert threads.free_processors(4) == 4


def test_a_machine_that_tells_nothing_is_taken_to_be_free(machine):
    assert threads.free_processors(8) == 8


def test_the_environments_choice_is_kept(machine, monkeypatch):
    machine(40)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.free_processors(3) == 3


def test_inside_it_is_that_many_and_outside_what_it_was(machine):
    before = torch.get_num_threads()
    machine(40)
    with threads.shared_by(3) as count:
        assert count == torch.get_num_threads() == 3
        with threads.shared_by("auto") as count:
            assert count == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
