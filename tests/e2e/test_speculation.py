"""A model whose next words another one guesses: the same text, and guesses that were right."""

from __future__ import annotations

import pytest

from engines.demo_model import demo_gguf
from gateway.live_yard import live_yard

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_llamacpp_with_another_model_of_the_configuration_as_its_draft() -> None:
    pytest.importorskip("xllamacpp")
    small = {"engine": "llamacpp", "source": str(demo_gguf()), "parameters": {"context": 512, "threads": 1}}
    big = {**small, "speculative": {"draft": "small", "tokens": 4}, "batching": {"max_tokens": 256}}
    models = {"small": small, "big": big}
    async with live_yard(models, devices={}, defaults={"max_wait": "4m"}) as yard:
        told = {"prompt": "Count: one, two, three,", "max_tokens": 24, "temperature": 0}
        alone = (await yard.post("/v1/completions", {"model": "small", **told})).body
        both = (await yard.post("/v1/completions", {"model": "big", **told})).body
        assert both["choices"][0]["text"] == alone["choices"][0]["text"]
        assert "draft_n" not in alone["timings"]
        guessed, right = both["timings"]["draft_n"], both["timings"]["draft_n_accepted"]
        print(f"{right} of {guessed} guesses of the draft model were right")
        assert right > guessed / 2, "it is the same model"
        (charge,) = (await yard.load("big")).placement
        (one,) = (await yard.load("small")).placement
        assert charge.whole > one.whole, "memory is reserved for both"
