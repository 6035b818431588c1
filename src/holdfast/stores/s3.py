"""s3://BUCKET/PREFIX: Amazon, and whatever speaks its protocol (MinIO, Ceph, R2 …) by AWS_ENDPOINT_URL.

Credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; else the profile AWS_PROFILE of
~/.aws/credentials and ~/.aws/config; else a web identity token, the container's or the machine's role.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from holdfast.errors import StoreRefused
from holdfast.stores.base import Store
from holdfast.stores.retry import Patience

if TYPE_CHECKING:
    from obstore.store import S3Config

_KEYS = ("access_key_id", "secret_access_key", "session_token")
_VARIABLES = {key: f"AWS_{key.upper()}" for key in _KEYS}


def connect(url: str, environ: Mapping[str, str], patience: Patience) -> Store:
    """A bucket. Raises StoreRefused when a file of credentials cannot be read, or half of a key pair is missing."""
    config = settings(environ)
    _check_pair(url, config)
    return connect_with(url, config, patience)


def connect_with(url: str, config: Mapping[str, str | bool], patience: Patience) -> Store:
    """A bucket of any S3 there is, `config` in obstore's words. Raises StoreRefused for an endpoint that is no URL."""
    from obstore.store import S3Store

    from holdfast.stores.remote import CLIENT, NO_RETRIES, RemoteStore

    parts = urlsplit(url)
    endpoint = str(config.get("endpoint", ""))
    _check_endpoint(url, endpoint)
    client = S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=cast("S3Config", {**config}),
        client_options={**CLIENT, "allow_http": endpoint.startswith("http://")},
        retry_config=NO_RETRIES,
    )
    return RemoteStore(url, client, patience)


def _check_pair(url: str, config: Mapping[str, str | bool]) -> None:
    has, lacks = sorted(_KEYS[:2], key=lambda key: key not in config)
    if has in config and lacks not in config:
        raise StoreRefused(
            f"{url}: {_VARIABLES[has]} is given, {_VARIABLES[lacks]} is not", hint="give both, or neither"
        )


def _check_endpoint(url: str, endpoint: str) -> None:
    """The client panics over what is no URL, so it is never given one."""
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and not any(map(str.isspace, endpoint))
    except ValueError:
        fits = False
    if endpoint and not fits:
        said = endpoint.rpartition("@")[2]  # never a password
        raise StoreRefused(f"{url}: the endpoint {said!r} is no URL", hint="write it like https://HOST:PORT")


def settings(environ: Mapping[str, str]) -> dict[str, str | bool]:
    """What obstore needs to know, from the environment and the files of the AWS tools."""
    known = {**_profile(environ), **_environment(environ)}
    return {name: value for name, value in known.items() if value}


def _environment(environ: Mapping[str, str]) -> dict[str, str | bool]:
    found: dict[str, str | bool] = {key: environ[name] for key, name in _VARIABLES.items() if name in environ}
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or environ.get("AWS_ENDPOINT")
    if region:
        found["region"] = region
    if endpoint:
        found["endpoint"] = endpoint
    return found


def _profile(environ: Mapping[str, str]) -> dict[str, str | bool]:
    name = environ.get("AWS_PROFILE", "default")
    home = Path(environ.get("HOME") or Path.home())
    secrets = _section(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials", name)
    section = name if name == "default" else f"profile {name}"
    config = _section(environ.get("AWS_CONFIG_FILE") or home / ".aws" / "config", section)
    found = {**config, **secrets}
    given: dict[str, str | bool] = {key: found[f"aws_{key}"] for key in _KEYS if f"aws_{key}" in found}
    return {"region": found.get("region", "us-east-1"), "endpoint": found.get("endpoint_url", ""), **given}


def _section(path: str | Path, name: str) -> Mapping[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        raise StoreRefused(f"{path} cannot be read: {type(error).__name__}") from error
    return parser[name] if parser.has_section(name) else {}
