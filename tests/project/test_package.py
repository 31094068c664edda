"""One version everywhere, semantic; what the package says of itself; what the archives are made of."""

import re
import tomllib
from pathlib import Path

import pytest

import slowsde as ss

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_one_version_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    released = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version in released[:2]
    assert released[0] in (version, "Unreleased")
    assert isinstance(ss.__version__, str)


def test_a_name_that_is_not_there_is_no_version() -> None:
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        ss.version  # noqa: B018


def test_what_an_archive_is_to_have_exists() -> None:
    for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / name.lstrip("/")).exists(), name
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert "label: " in template.read_text()
