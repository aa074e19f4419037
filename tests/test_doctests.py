"""Every example in a docstring is right: modules, classes, functions and ops."""

from __future__ import annotations

import builtins
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import minidl

MODULES = sorted(module.name for module in pkgutil.walk_packages([str(Path(minidl.__file__).parent)], "minidl."))
PUBLIC = {name: getattr(minidl, name) for name in minidl.__all__ if not hasattr(builtins, name)}


@pytest.mark.parametrize("name", ["minidl", *MODULES])
def test_examples(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(module, globs=PUBLIC | vars(module), optionflags=doctest.ELLIPSIS)
    assert not failed, f"{failed} examples of {name} do not show what they promise (see the captured output)"
