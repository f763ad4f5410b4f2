from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("licences", [[{"id": [1]}], {"id": 1}, 3, ["text"], None])
def test_licences_of_any_form_end_nothing(licences: Any, data: Any) -> None:
    data.labels["train"]["licenses"] = licences
    data.labels["train"]["images"][0]["license"] = [1, 2]
    (found,) = data.examine().defects
    assert found.kind == "licence-missing"
    assert {place.split for place in found.places} == {"train"}


def test_a_split_without_any_object_cannot_be_used(data: Any) -> None:
    data.labels["val"]["annotations"] = []
    assert not data.examine().usable
