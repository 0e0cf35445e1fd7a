"""What a user's own study imports."""

import types

import search_spaces


def test_the_package_exports_what_it_lists_and_no_more():
    names = {name for name, value in vars(search_spaces).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in names if not name.startswith("_")} == set(search_spaces.__all__)


def test_a_study_is_loaded_from_the_package():
    assert search_spaces.load_study("capacity").name == "capacity"
