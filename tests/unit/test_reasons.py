"""Messages have the words of moesim's own checks, and none of pydantic's around them."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT
from pydantic import BaseModel, ValidationError, field_validator
from workloads import tiny_trace

from moesim.config.reasons import reason_of
from moesim.errors import UsageError
from moesim.policies import find, parse_options
from moesim.scenario import load_scenario


class Checked(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def _check(cls, number: int) -> int:
        if number == 4:
            raise AssertionError("is four")
        if number == 5:
            raise ValueError("is five")
        return number


@pytest.mark.parametrize(
    ("number", "reason"), [(4, "is four"), (5, "is five"), ("x", "Input should be a valid integer")]
)
def test_a_reason_is_the_text_of_the_check(number: object, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Checked.model_validate({"number": number})
    for context in (True, False):
        (error,) = caught.value.errors(include_context=context)
        assert reason_of(error).partition(",")[0] == reason


def test_only_one_place_reads_the_messages_of_pydantic() -> None:
    """So that its prefix "Value error, " cannot leak from another."""
    readers = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "moesim").rglob("*.py")
        if any(text in file.read_text(encoding="utf-8") for text in ('["msg"]', "['msg']"))
    }
    assert readers == {"moesim/config/reasons.py"}


def test_options_and_keys_of_a_scenario_are_refused_in_our_words(tmp_path: Path) -> None:
    options = {"preset": "adapmoe", "recall": 0.5}
    with pytest.raises(UsageError) as caught:
        parse_options(find("prefetch", "dial"), options)
    texts = [str(caught.value)]
    tiny_trace().save(tmp_path / "trace")
    (tmp_path / "x.yaml").write_text("trace: trace\nhardware: rtx-4090\n")
    for override in (
        f"prefetch={{policy: dial, options: {options}}}",
        "workload.part=[0.5, 0.2]",
        "cache.slots=-1",
    ):
        with pytest.raises(UsageError) as refused:
            load_scenario(tmp_path / "x.yaml", [override])
        texts.append(str(refused.value))
    assert all("preset replaces recall and precision" in text for text in texts[:2])
    assert not any("Value error" in text for text in texts), texts
