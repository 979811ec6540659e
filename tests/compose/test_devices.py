"""Which devices a model may use when it names none, one, or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from compose.test_refused_starts import GGUF
from gateway.live_yard import fake, live_yard
from modelyard import config
from modelyard.core.events import DeviceSeen
from modelyard.core.placement import place
from modelyard.core.types import NoFit

SIZE = 8_000_000_000
POOL = {"kind": "declared", "memory": SIZE, "reserve": 0}


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({}, ["ram", "accelerator"]),
        ({"devices": ["gpu1"]}, ["ram", "accelerator"]),
        ({"devices": ["gpu0", "gpu1"]}, ["ram", "accelerator", "accelerator"]),
        ({"parameters": {"tensor_split": [1, 1]}}, ["ram", "accelerator", "accelerator"]),
        ({"devices": ["ram"]}, ["ram"]),
    ],
)
async def test_a_model_is_split_only_when_it_says_so(
    fields: dict[str, Any], shares: list[str], tmp_path: Path
) -> None:
    """Another's job on one device stops only what has to lie there."""
    source = str(tmp_path / "small.gguf")
    Path(source).write_bytes(GGUF)
    model = {"engine": "llamacpp", "source": source, **fields}
    async with live_yard({"a": fake()}, devices={"gpu0": POOL, "gpu1": POOL}) as yard:
        await yard.yard.store.fetch(source)
        order = config.load(None, yaml.safe_dump({"models": {"m": model}}))
        await yard.yard.add_model(order, order.models[0])
        version = next(one for one in yard.state.versions.values() if one.spec.model == "m")
        assert version.need is not None
        assert [share.on for share in version.need.shares] == shares
        yard.driver.post(DeviceSeen("gpu0", SIZE, 0, {}))
        devices = yard.state.ledger.devices
        placement = place(version.need, version.spec, devices, lambda device: devices[device].free)
        if shares.count("accelerator") > 1:
            assert isinstance(placement, NoFit)
        else:
            assert isinstance(placement, tuple)
            assert [charge.device for charge in placement] == [
                "ram",
                *(["gpu1"] * shares.count("accelerator")),
            ]
