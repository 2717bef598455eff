"""Made-up payments: seeded, as rare and as gappy as they say, hard enough, and movable."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from serving.drift import psi
from serving.tensors import Batch, Prediction
from training.profile import profile
from training.transactions import COLUMNS, FRAUDS, payments


def test_the_same_arguments_give_the_same_payments() -> None:
    one, other = payments(500, seed=3, drift=0.2), payments(500, seed=3, drift=0.2)
    pd.testing.assert_frame_equal(one.inputs, other.inputs)
    assert one.labels.tolist() == other.labels.tolist()
    assert not payments(500, seed=4).inputs.equals(payments(500, seed=3).inputs)


def test_twenty_columns_of_numbers_and_of_texts() -> None:
    rows = payments(300)
    assert tuple(rows.inputs.columns) == COLUMNS
    assert len(COLUMNS) == 20
    texts = rows.inputs.select_dtypes(exclude="number").columns
    assert set(texts) == {"merchant_category", "channel", "device", "card_type", "country", "address_check", "email"}
    assert set(rows.labels.tolist()) <= {0, 1}


def test_about_one_in_a_hundred_is_fraud() -> None:
    assert payments(50_000, seed=9).labels.mean() == pytest.approx(FRAUDS, rel=0.15)


def test_what_is_missing_is_missing_for_a_reason() -> None:
    frame = payments(5000).inputs
    online = frame["channel"] == "online"
    for name in ("device", "email", "device_age_days", "address_check"):
        assert frame.loc[~online, name].isna().all()
    assert frame.loc[online, "device"].notna().all()
    assert frame.loc[online, "distance_km"].isna().all()
    assert frame.loc[~online, "distance_km"].isna().mean() < 0.05
    assert frame.loc[frame["transactions_24h"] == 0, "minutes_since_last"].isna().all()


def test_a_missing_text_is_none_in_a_batch() -> None:
    device = payments(200).batch().column("device").tolist()
    assert None in device
    assert all(value is None or isinstance(value, str) for value in device)


def test_drift_moves_amounts_devices_and_merchants_and_little_else() -> None:
    learned, nothing = payments(3000, seed=1).batch(), Prediction(np.zeros(3000))
    bins = {each.name: each for each in profile(learned, nothing, None).features}

    def moved(batch: Batch) -> set[str]:
        scores = {name: psi(each.count(batch.column(name))[0].tolist(), each.ratios) for name, each in bins.items()}
        return {name for name, score in scores.items() if score > (bins[name].threshold or 0)}

    assert moved(payments(3000, seed=2).batch()) == set()
    assert {"amount", "device", "merchant_category"} <= moved(payments(3000, seed=2, drift=1.0).batch())
    assert not {"hour", "weekday", "card_type", "account_age_days"} & moved(payments(3000, seed=2, drift=1.0).batch())


@pytest.mark.parametrize("drift", [-0.1, 1.1])
def test_drift_is_between_nothing_and_everything(drift: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        payments(10, drift=drift)
