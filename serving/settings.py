"""Settings: one frozen table of names, defaults and help. Read once, in `app.py`; modules take plain arguments."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from serving.errors import SettingError

ROOT = Path(__file__).resolve().parent.parent
TABLE_START, TABLE_END = "<!-- settings: made by make docs -->", "<!-- end of settings -->"


DATABASES = ("postgresql://", "postgresql+psycopg2://", "postgres://", "sqlite:///")


def setting(
    default: Any, help: str, *, secret: bool = False, least: float | None = None, most: float | None = None
) -> Any:
    """A row of the table. A ``secret`` may come from a file that NAME_FILE names, and never shows in ``repr``."""
    metadata = {"help": help, "secret": secret, "least": least, "most": most}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Every setting, under its environment variable's name in lower case."""

    mlflow_tracking_uri: str = setting(
        f"sqlite:///{ROOT / 'mlruns' / 'mlflow.db'}",
        "Where the registry is. Default: an SQLite file beside the code, `mlruns/mlflow.db`.",
    )
    mlflow_tracking_username: str = setting("", "User name for a tracking server with basic authentication.")
    mlflow_tracking_password: str = setting("", "Its password.", secret=True)
    mlflow_tracking_token: str = setting("", "Bearer token for the tracking server.", secret=True)
    models: tuple[str, ...] = setting(
        ("iris",),
        "What to serve: a comma list of `name` (its alias `champion`), `name@alias` or `name/version`. "
        "The first answers routes that name no model.",
    )
    ready_when: str = setting("all", "Ready when `all` models have a version to answer with, or when `any` has.")
    challenger: str = setting(
        "shadow",
        "What a version behind the alias `challenger` does, where its tag `route` does not say: `off`, `shadow` (it "
        "sees copies of what is asked), or the share of callers that it answers, such as `10%`.",
    )
    routing_header: str = setting(
        "X-Routing-Key",
        "The header that says who asks, so that a caller keeps its version; without it, it is the request's id.",
    )
    state_dir: Path = setting(
        ROOT / ".state", "Bundles and notes of this service; survives restarts. Default: `.state` beside the code."
    )
    model_dir: Path = setting(
        ROOT / "models",
        "Local files to start from when the registry gives nothing. Default: `models` beside the code.",
    )
    poll_interval_s: float = setting(5.0, "Longest time between two looks at the registry.", least=0.1)
    prepare_timeout_s: float = setting(
        120.0, "Time in which a new version must be fetched, loaded and proven.", least=1
    )
    reload_timeout_s: float = setting(
        150.0, "How long `POST /model/reload` waits for the version and for every worker.", least=1
    )
    keep_bundles: int = setting(3, "Prepared versions kept on disk for each model, the live one included.", least=1)
    auto_rollback: bool = setting(
        False,
        "Whether the alias goes back to the version before when a new one fails or is slow in its probation.",
    )
    probation_s: float = setting(600.0, "How long a new version is watched for that after it went live.", least=1)
    rollback_error_ratio: float = setting(0.05, "It goes back if more than this share of rows fails.", least=0, most=1)
    rollback_latency_ratio: float = setting(
        2.0, "Or where 95 % of calls take more than so many times what they took before (and 1 ms).", least=1
    )
    rollback_min_rows: int = setting(50, "Not before so many rows (for the latency: calls) were counted.", least=1)
    bind_address: str = setting("127.0.0.1", "Address to listen on; `0.0.0.0` for all.")
    port: int = setting(5000, "Port to listen on.", least=1, most=65535)
    web_concurrency: int = setting(
        0, "Worker processes. 0: as many as the CPU limit (cgroup) allows.", least=0, most=256
    )
    threads: int = setting(
        16, "Threads of each worker: how many slow requests it takes at once, and answers together.", least=1, most=256
    )
    max_batch_rows: int = setting(
        256, "Rows that are answered together at most, for a model that gains from it. 0: never together.", least=0
    )
    max_queue_rows: int = setting(2048, "Rows that may wait for such a model; beyond them 503.", least=1)
    predict_timeout_s: float = setting(30.0, "How long a request may wait for such a model; after that 504.", least=0.1)
    drain_s: float = setting(2.0, "After SIGTERM: how long to go on answering while readiness says no.", least=0)
    max_body_bytes: int = setting(64 * 1024 * 1024, "Largest request body.", least=1)
    max_rows: int = setting(100_000, "Most rows in one request.", least=1)
    max_image_pixels: int = setting(
        50_000_000,
        "Most pixels of one picture, whose sides may have 16,384. A large one takes up to 16 bytes a pixel while it "
        "is made small, one at a time in each worker.",
        least=1,
        most=89_478_485,  # beyond it Pillow itself speaks of bombs
    )
    max_images: int = setting(32, "Most pictures in one request.", least=1)
    max_text_characters: int = setting(32_768, "Longest text that is made a vector of, in characters.", least=1)
    max_texts: int = setting(2_048, "Most texts in one request, of models that make vectors of them.", least=1)
    metrics_port: int = setting(
        0,
        "Port on which gunicorn's master serves `/metrics` too, also when all workers are busy. 0: none.",
        least=0,
        most=65535,
    )
    database_url: str = setting(
        "",
        "The ledger's database: `postgresql://…` or `sqlite:///…`. Default: an SQLite file in STATE_DIR.",
        secret=True,
    )
    ledger_sample: float = setting(
        1.0, "Share of the predictions that is kept in the ledger; 0: there is no ledger.", least=0, most=1
    )
    ledger_omit: tuple[str, ...] = setting((), "A comma list of columns whose values are never written anywhere.")
    ledger_keep_days: float = setting(30.0, "How long predictions and labels are kept.", least=0.01)
    ledger_max_rows: int = setting(1_000_000, "How many are kept at most, the newest. 0: no limit.", least=0)
    ledger_spool_bytes: int = setting(
        256 * 1024 * 1024, "What may wait on disk while the ledger's database is away.", least=1
    )
    build_version: str = setting("", "What `/model/info` calls this build of the service; images have it set.")
    build_commit: str = setting("", "The git commit that it was made of; likewise.")
    log_level: str = setting("info", "One of debug, info, warning, error.")
    log_format: str = setting("auto", "`json`, `text`, or `auto`: text on a terminal, else JSON lines.")
    prometheus_multiproc_dir: str = setting("", "Where workers share their metrics. Default: `metrics` in STATE_DIR.")

    def __post_init__(self) -> None:
        _choice("LOG_LEVEL", self.log_level, ("debug", "info", "warning", "error"))
        _choice("READY_WHEN", self.ready_when, ("all", "any"))
        _choice("LOG_FORMAT", self.log_format, ("auto", "json", "text"))
        if self.database_url and not self.database_url.startswith(DATABASES):
            raise SettingError(f"DATABASE_URL must start with one of {', '.join(DATABASES)}")  # it may hold a password
        if not self.models:
            raise SettingError("MODELS is empty; expected a comma list such as 'iris,fraud@challenger'")

    @property
    def url(self) -> str:
        """Where a caller on this machine reaches the service."""
        everywhere = self.bind_address in ("127.0.0.1", "0.0.0.0", "::", "::1")
        host = (
            "localhost" if everywhere else f"[{self.bind_address}]" if ":" in self.bind_address else self.bind_address
        )
        return f"http://{host}:{self.port}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment. Raises `SettingError` that names the setting and what was expected."""
        environ = os.environ if environ is None else environ
        _refuse_unknown(environ)
        given = {row.name: _parse(row, text) for row in fields(cls) if (text := _text(row, environ)) is not None}
        return cls(**given)


def names() -> dict[str, Field[Any]]:
    """Every setting's row under the name of its environment variable."""
    return {row.name.upper(): row for row in fields(Settings)}


def table() -> str:
    """The README's table of settings, in Markdown."""
    lines = ["| setting | default | what |", "|---|---|---|"]
    for name, row in names().items():
        shown = _shown(_fixed(row))
        secret = f" May come from the file that `{name}_FILE` names." if row.metadata["secret"] else ""
        lines.append(f"| `{name}` | {shown} | {row.metadata['help']}{secret} |")
    return "\n".join(lines)


def env_example() -> str:
    """``.env.example``: every setting with its help, commented out."""
    blocks = ["# Settings. Copy this file to .env, or set what you need in the environment, which wins."]
    for name, row in names().items():
        blocks.append(f"# {row.metadata['help'].replace('`', '')}\n#{name}={_shown(_fixed(row)).strip('`')}")
    return "\n\n".join(blocks) + "\n"


def _fixed(row: Field[Any]) -> Any:
    """The default, unless it depends on where the checkout lies."""
    return "" if str(ROOT) in str(row.default) else row.default


def _shown(default: Any) -> str:
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`" if text else ""


def _text(row: Field[Any], environ: Mapping[str, str]) -> str | None:
    name = row.name.upper()
    place = environ.get(f"{name}_FILE") if row.metadata["secret"] else None
    if not place:
        return environ.get(name) or None  # an empty variable is an unset one, as in compose files
    if environ.get(name):
        raise SettingError(f"{name} and {name}_FILE are both set; give one of them")
    try:
        return Path(place).read_text(encoding="utf-8").strip()
    except OSError as err:
        raise SettingError(f"{name}_FILE: cannot read {place}: {err.strerror}") from err
    except UnicodeDecodeError:
        raise SettingError(f"{name}_FILE: {place} is not UTF-8 text") from None


def _parse(row: Field[Any], text: str) -> Any:
    kind = type(row.default) if row.default is not MISSING else str
    name = row.name.upper()
    try:
        value = PARSERS[kind](text)
    except ValueError:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a path")
        raise SettingError(f"{name} must be {expected}, not {text!r}") from None
    least, most = row.metadata["least"], row.metadata["most"]
    if least is not None and not value >= least:
        raise SettingError(f"{name} must be at least {least:g}, not {text}")
    if most is not None and not value <= most:
        raise SettingError(f"{name} must be at most {most:.12g}, not {text}")
    return value


SWITCH = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
PARSERS: dict[type, Callable[[str], Any]] = {
    str: str,
    bool: lambda text: _switch(text),
    int: int,
    float: lambda text: _finite(float(text)),
    tuple: lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
    type(ROOT): lambda text: _absolute(Path(text)),
}


def _switch(text: str) -> bool:
    if (word := text.strip().lower()) not in SWITCH:
        raise ValueError(text)
    return SWITCH[word]


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as err:  # ~somebody who has no home here
        raise ValueError(str(err)) from err


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """Our names have no prefix of their own, so what is refused is a name that is nearly one of ours."""
    known = set(names()) | {f"{name}_FILE" for name, row in names().items() if row.metadata["secret"]}
    for name in sorted(set(environ) - known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.88)
        if near and name not in ECOSYSTEM:
            raise SettingError(f"unknown setting {name}; did you mean {near[0]}?")


# Names that others own and that look like ours.
ECOSYSTEM = frozenset({"MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_DIR"})


if __name__ == "__main__":  # make docs
    readme = ROOT / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    readme.write_text(f"{before}{start}\n\n{table()}\n\n{end}{after}", encoding="utf-8")
    (ROOT / ".env.example").write_text(env_example(), encoding="utf-8")
