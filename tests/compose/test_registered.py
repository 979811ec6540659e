"""What is held of the registry: which version a reference means."""

from __future__ import annotations

import pytest

from modelyard.compose.registered import Holding
from modelyard.core.types import Policy, Spec
from modelyard.engines import registry as engines
from modelyard.engines.base import Profile
from modelyard.errors import ModelNotFound
from modelyard.gateway.names import SHORTEST, Names, NotServed
from modelyard.registry import Capabilities, ModelRecord, VersionRecord, VersionState
from modelyard.runtime.entries import Entry

DIGESTS = ("abcdef000001", "abcdef000002", "123456abcdef")


def test_digits_that_several_versions_have_are_refused_also_where_one_of_them_is_served() -> None:
    versions = {
        number: VersionRecord("m", number, digest, {}, VersionState.VERIFIED, "", Capabilities(), 0.0, "")
        for number, digest in enumerate(DIGESTS, 1)
    }
    record = ModelRecord("m", 1, "", "", versions[1], None, {}, ("alias",), {}, 0.0, 0.0)
    holding, names = Holding(record, versions), Names()

    def find(model: str, reference: str, tag: bool) -> str | None:
        number = holding.number_of(reference, tag=tag, shortest=SHORTEST)
        return None if number is None else f"m@{DIGESTS[number - 1]}"

    names.find = find
    current = Entry(Spec("m", DIGESTS[0], "fake"), Policy(), engines.load()["fake"], Profile("fake", "fake"))
    names.add(current, ("alias",))
    for name in ("m@abcdef", "alias@abcdef00000"):
        with pytest.raises(
            ModelNotFound, match=r"may be m@1 \(abcdef000001\) or m@2 \(abcdef000002\)"
        ) as caught:
            names.resolve(name)
        assert not isinstance(caught.value, NotServed)
    for name in ("m@abcdef000001", "m@1", "alias@1"):
        assert names.resolve(name) is current
    with pytest.raises(NotServed, match="m@123456abcdef is registered"):
        names.resolve("m@123456")
