"""Packages whose names are imported when they are used have all of them, and nothing else."""

import importlib

import pytest

PACKAGES = ("lightning_info", "lightning_info.quantities")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    names: dict = {}
    exec(f"from {package} import *", names)
    for name in module.__all__:
        assert names[name] is getattr(module, name)
        assert name in dir(module)
    assert set(module._HOMES) == {name for name in module.__all__ if not name.startswith("__")}


def test_rooms_are_found_and_other_names_are_not():
    import lightning_info

    assert lightning_info.functional.standard_error.__name__ == "lightning_info.functional.standard_error"
    with pytest.raises(AttributeError, match="module 'lightning_info' has no attribute 'nonsense'"):
        lightning_info.nonsense  # noqa: B018
    assert not hasattr(lightning_info, "_nonsense")
