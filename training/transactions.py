"""Card payments that never happened: made up as such a table looks, a hundredth of them fraud.

Nobody publishes real ones with names of columns, so these are drawn. A payment has a *situation* that the table does
not show (an ordinary day, a journey, a sale, a new device, a burst of tries): it explains why a payment is far from
home or one of many, and most such payments are honest. Whether it is fraud is drawn from a latent risk, in which
columns count together: a new device is harmless, and so is a large amount; both at once, on an old account, are not.
Noise that no column shows keeps every model from being perfect. What is missing is missing for a reason: a chip in a
terminal has no e-mail address, a payment over the internet no distance from home, a new customer no usual amount.

``drift`` moves the world away from the one that a model learned from: amounts rise with the prices, phones replace
computers, and vouchers and games are bought that were rare. With 0 nothing has moved, with 1 a few years have passed.
So a demonstration trains on ``payments(n)``, sends ``payments(m, seed=1, drift=0.0)`` and then more and more of it, and
sees the drift of ``amount``, ``device`` and ``merchant_category`` rise, and few others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from training.data import Rows

FRAUDS = 0.01  # of all payments
NOISE = 0.5  # standard deviation of what no column shows, in logits
RISE = 0.7  # by how much amounts have risen at full drift, as a logarithm

# Each with its share of an ordinary day, its typical amount, the spread of its logarithm, and its share at full drift.
MERCHANTS = {
    "groceries": (0.27, 32.0, 0.7, 0.18),
    "restaurants": (0.14, 28.0, 0.6, 0.13),
    "fuel": (0.09, 55.0, 0.4, 0.05),
    "clothing": (0.11, 60.0, 0.7, 0.08),
    "electronics": (0.06, 190.0, 0.9, 0.08),
    "travel": (0.05, 240.0, 0.9, 0.06),
    "pharmacy": (0.08, 18.0, 0.6, 0.06),
    "subscriptions": (0.10, 12.0, 0.4, 0.14),
    "games": (0.05, 15.0, 0.9, 0.12),
    "vouchers": (0.02, 60.0, 0.8, 0.07),
    "cash": (0.03, 110.0, 0.6, 0.03),
}
REMOTE = {"subscriptions": 0.98, "games": 0.97, "vouchers": 0.7, "travel": 0.75, "electronics": 0.55, "clothing": 0.5}
DEVICES = {
    "android": (0.36, 0.50),
    "ios": (0.30, 0.38),
    "windows": (0.24, 0.07),
    "mac": (0.08, 0.04),
    "other": (0.02, 0.01),
}
SITUATIONS = {"ordinary": 0.857, "journey": 0.05, "sale": 0.04, "new device": 0.028, "burst": 0.025}
EMAILS = {"provider": 0.74, "own": 0.16, "work": 0.08, "disposable": 0.02}
BY_HOUR = np.array([2, 1, 1, 1, 1, 2, 4, 7, 8, 8, 9, 11, 13, 12, 10, 10, 11, 13, 14, 12, 10, 8, 6, 4], dtype=float)
BY_WEEKDAY = np.array([13, 13, 14, 14, 17, 18, 11], dtype=float)

Columns = dict[str, np.ndarray]


def payments(count: int, seed: int = 0, drift: float = 0.0) -> Rows:
    """``count`` payments with 1 for fraud and 0 for what is not; the same for the same arguments.

    Raises ValueError for a ``drift`` outside of 0 to 1.
    """
    if not 0 <= drift <= 1:
        raise ValueError(f"drift is a number from 0 to 1, not {drift}")
    random = np.random.default_rng(seed)
    columns = _circumstances(random, count, drift)
    columns |= _history(random, columns)
    columns |= _amounts(random, columns, drift)
    columns |= _place(random, columns)
    columns |= _identity(random, columns, drift)
    risk = _risk(columns) + random.normal(0.0, NOISE, count)
    labels = (random.random(count) < _probability(risk)).astype(np.int64)
    return Rows(_frame(random, columns), labels)


def _draw(random: np.random.Generator, shares: dict[str, Any], count: int) -> np.ndarray:
    """Names by their shares, which need not add up to one."""
    weights = np.array(list(shares.values()), dtype=float)
    return np.array(list(shares), dtype=object)[random.choice(len(shares), count, p=weights / weights.sum())]


def _circumstances(random: np.random.Generator, count: int, drift: float) -> Columns:
    """When and where something is bought, and the situation behind it."""
    merchants = {name: before + drift * (after - before) for name, (before, _, _, after) in MERCHANTS.items()}
    merchant = _draw(random, merchants, count)
    remote = random.random(count) < np.array([REMOTE.get(name, 0.06) for name in merchant])
    near = np.where(random.random(count) < 0.55, "contactless", np.where(random.random(count) < 0.93, "chip", "stripe"))
    return {
        "situation": _draw(random, SITUATIONS, count),
        "merchant_category": merchant,
        "channel": np.where(remote, "online", near).astype(object),
        "hour": random.choice(24, count, p=BY_HOUR / BY_HOUR.sum()),
        "weekday": random.choice(7, count, p=BY_WEEKDAY / BY_WEEKDAY.sum()),
        "card_type": _draw(random, {"debit": 0.62, "credit": 0.31, "prepaid": 0.07}, count),
    }


def _history(random: np.random.Generator, columns: Columns) -> Columns:
    """What the account did before."""
    count, burst, sale = len(columns["hour"]), columns["situation"] == "burst", columns["situation"] == "sale"
    account = np.floor(random.gamma(1.3, 700.0, count)).astype(np.int64)
    day = random.poisson(random.gamma(2.0, 1.2, count)) + np.where(sale, random.poisson(4.0, count), 0)
    hour = random.binomial(day, 0.12) + np.where(burst, 2 + random.poisson(4.0, count), 0)
    day = np.maximum(day, hour)
    return {
        "account_age_days": account,
        "card_age_days": np.floor(np.minimum(account, random.gamma(1.5, 350.0, count))).astype(np.int64),
        "transactions_1h": hour,
        "transactions_24h": day,
        "declined_24h": random.binomial(1 + day, np.where(burst, 0.3, 0.02)),
        "minutes_since_last": np.round(random.exponential(1440.0 / (0.6 + day + 12 * hour)), 1),
    }


def _amounts(random: np.random.Generator, columns: Columns, drift: float) -> Columns:
    """What it costs, beside what this customer usually spends."""
    typical, spread = (np.array([MERCHANTS[name][at] for name in columns["merchant_category"]]) for at in (1, 2))
    count, wealth = len(typical), random.normal(0.0, 0.45, len(typical))
    amount = np.exp(np.log(typical) + wealth + RISE * drift + random.normal(0.0, spread))
    tiny = (columns["situation"] == "burst") & (random.random(count) < 0.5)
    amount = np.where(tiny, random.uniform(0.5, 4.0, count), amount)
    usual = 42.0 * np.exp(wealth + RISE * drift + random.normal(0.0, 0.25, count))
    return {
        "amount": np.maximum(0.5, np.round(amount, 2)),
        "amount_24h": np.round(usual * columns["transactions_24h"] * random.lognormal(-0.1, 0.4, count), 2),
        "amount_to_usual": np.round(amount / usual, 3),
    }


def _place(random: np.random.Generator, columns: Columns) -> Columns:
    """How far from home, and in which country the merchant or the address of the computer is."""
    journey = columns["situation"] == "journey"
    count = len(journey)
    distance = np.where(journey, random.lognormal(6.2, 1.0, count), random.lognormal(1.6, 1.1, count))
    abroad = random.random(count) < np.where(journey, 0.6, 0.015)
    neighbour = random.random(count) < np.where(journey, 0.5, 0.03)
    return {
        "distance_km": np.round(distance, 1),
        "country": np.where(abroad, "abroad", np.where(neighbour, "neighbour", "home")).astype(object),
    }


def _identity(random: np.random.Generator, columns: Columns, drift: float) -> Columns:
    """What a payment over the internet tells of who makes it."""
    count, fresh = len(columns["hour"]), columns["situation"] == "new device"
    age = np.minimum(random.gamma(1.4, 260.0, count), columns["account_age_days"] + 1)
    mismatch = random.random(count) < np.where(columns["situation"] == "burst", 0.3, 0.05)
    return {
        "device": _draw(random, {name: old + drift * (new - old) for name, (old, new) in DEVICES.items()}, count),
        "device_age_days": np.floor(np.where(fresh, random.uniform(0.0, 2.0, count), age)).astype(float),
        "email": _draw(random, EMAILS, count),
        "address_check": np.where(mismatch, "mismatch", "match").astype(object),
    }


def _risk(columns: Columns) -> np.ndarray:
    """The log-odds of fraud, but for a constant: what counts alone, and the schemes in which columns count together."""
    online, night = columns["channel"] == "online", np.isin(columns["hour"], (0, 1, 2, 3, 4, 5))
    alone = (
        0.5 * night
        + 0.9 * (columns["country"] == "abroad")
        + 0.6 * (columns["card_type"] == "prepaid")
        + 1.2 * (online & (columns["email"] == "disposable"))
        + 0.9 * (online & (columns["address_check"] == "mismatch"))
        + 0.5 * np.isin(columns["merchant_category"], ("vouchers", "electronics", "games", "cash"))
        + 0.35 * np.clip(np.log(columns["amount_to_usual"] + 0.05), -2.0, 2.5)
        - 0.25 * np.log1p(columns["account_age_days"] / 30.0)
        + 0.4 * np.minimum(columns["declined_24h"], 4)
    )
    return alone + sum(_schemes(columns, online, night))


def _schemes(columns: Columns, online: np.ndarray, night: np.ndarray) -> list[np.ndarray]:
    """Ways of thieves. Each is strong, and needs all of its signs."""
    resold = np.isin(columns["merchant_category"], ("vouchers", "electronics", "games", "travel"))
    ratio = columns["amount_to_usual"]
    tested = online & (columns["transactions_1h"] >= 4) & (columns["amount"] < 6.0)
    taken_over = online & (columns["device_age_days"] < 3) & (columns["account_age_days"] > 150) & (ratio > 1.5)
    stolen = ~online & (columns["distance_km"] > 60) & (columns["channel"] != "chip") & (ratio > 1.2)
    emptied = (columns["transactions_1h"] >= 3) & (ratio > 2.0) & resold
    invented = online & (columns["account_age_days"] < 45) & (ratio > 2.5) & (columns["email"] != "work")
    return [
        7.5 * tested,
        7.0 * taken_over + 1.5 * (taken_over & night),
        5.0 * stolen + 1.5 * (stolen & (columns["country"] == "abroad")),
        7.0 * emptied,
        5.5 * invented + 1.5 * (invented & resold),
    ]


# The constant of the log-odds, so that `FRAUDS` of the payments are fraud. It is a number and not found anew for every
# draw: with drift there are as many frauds as the drift brings.
CONSTANT = -7.0


def _probability(risk: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-(risk + CONSTANT))))


def _frame(random: np.random.Generator, columns: Columns) -> pd.DataFrame:
    """The table without the situation, and with its gaps."""
    count, online = len(columns["hour"]), columns["channel"] == "online"
    lost = random.random((count, 3))
    gaps = {
        "distance_km": online | (lost[:, 0] < 0.02),  # terminals that do not say where they stand
        "device": ~online,
        "device_age_days": ~online | (lost[:, 1] < 0.08),  # browsers that tell nothing
        "email": ~online,
        "address_check": ~online | (lost[:, 2] < 0.12),  # merchants that do not ask
        "minutes_since_last": columns["transactions_24h"] == 0,
        "amount_to_usual": columns["account_age_days"] < 14,
    }
    frame = pd.DataFrame({name: columns[name] for name in COLUMNS})
    for name, gone in gaps.items():
        frame.loc[gone, name] = None
    return frame


COLUMNS = (
    "amount",
    "hour",
    "weekday",
    "merchant_category",
    "channel",
    "device",
    "card_type",
    "country",
    "address_check",
    "email",
    "distance_km",
    "account_age_days",
    "card_age_days",
    "device_age_days",
    "minutes_since_last",
    "transactions_1h",
    "transactions_24h",
    "declined_24h",
    "amount_24h",
    "amount_to_usual",
)
