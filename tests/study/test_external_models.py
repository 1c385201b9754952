"""Every network of torchvision and of timm's families is cut right or refused, as docs/networks.md says."""

import pytest

from offramp.study import external_models
from offramp.study.external_models import names, read, survey

KNOWN = read(external_models.RESULTS)


def test_the_list_covers_the_families() -> None:
    listed = names()
    assert len(listed) == len(set(listed)) and sum(name.startswith("timm:") for name in listed) >= 100
    assert {"equal", "refused"} >= {record["result"] for record in KNOWN.values() if record["result"] != "too large"}


def test_a_record_says_what_was_cut() -> None:
    record = survey("timm:test_mambaout")
    assert record["result"] == "equal" and len(record["after"]) == 3 and record == KNOWN["timm:test_mambaout"]


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", names())
def test_every_network_is_cut_right_or_refused(name: str) -> None:
    """A network without a record yet must not fail otherwise than by a refusal."""
    record = survey(name)
    assert record["result"] in ("equal", "refused", "too large")
    assert record == KNOWN.get(name, record)
